# `make help` lists the targets.
SHELL := bash
GO ?= go
# grpcnotrace keeps html/template out of the binary (docs/dependencies.md).
TAGS := grpcnotrace
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
HELPER := internal/runtime/shim/bin/proa-shim
KUBECTL := internal/cluster/kubectl/bin/kubectl.zst
KUBERNETES := v1.37.2
DATA ?= /var/lib/proa

.DEFAULT_GOAL := help
.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: build
build: $(HELPER) $(KUBECTL) ## Build bin/proa, with kubectl in it
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags='$(LDFLAGS)' -o bin/proa ./cmd/proa

$(HELPER): $(wildcard internal/runtime/shim/src/*.c internal/runtime/shim/src/*.h)
	$(GO) generate ./internal/runtime/shim

# kubectl is three times the size of proa and hardly ever changes: it is built apart.
KUBECTL_LDFLAGS := -s -w $(foreach x,gitVersion=$(KUBERNETES)+proa gitMajor=1 gitMinor=37 gitTreeState=clean gitCommit=,-X k8s.io/component-base/version.$(x))
$(KUBECTL): go.mod $(wildcard cmd/kubectl/*.go) internal/cluster/kubectl/pack/main.go
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='$(KUBECTL_LDFLAGS)' -o bin/kubectl-unpacked ./cmd/kubectl
	CGO_ENABLED=0 $(GO) run -trimpath ./internal/cluster/kubectl/pack bin/kubectl-unpacked $(@D)
	rm bin/kubectl-unpacked

bin/hello: $(wildcard examples/hello/*.go)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o $@ ./examples/hello

.PHONY: images
images: bin/hello ## Pack the example's image
	$(GO) run ./test/image -o bin/hello-v1.tar -t proa.example/hello:v1 -e VERSION=v1 -c /hello bin/hello=/hello
	$(GO) run ./test/image -o bin/hello-v2.tar -t proa.example/hello:v2 -e VERSION=v2 -c /hello bin/hello=/hello

PROA := bin/proa --data-dir $(DATA)

.PHONY: up
up: build images ## Start a cluster in the background with the example application on it (as root)
	@$(PROA) image import bin/hello-v1.tar bin/hello-v2.tar
	@$(PROA) up --detach
	@$(PROA) kubectl apply -f examples/hello.yaml
	@$(PROA) kubectl rollout status deployment/hello --timeout=90s
	@$(PROA) kubectl wait --for=condition=complete job/hello --timeout=90s
	@$(PROA) kubectl get deployment,pod,service,job -l app=hello -o wide
	@url=http://$$($(PROA) kubectl get service hello -o jsonpath='{.spec.clusterIP}')/; \
		for i in 1 2 3; do echo "$$ curl $$url"; bin/hello get $$url || exit 1; done; \
		echo; url=http://$$($(PROA) kubectl get node -o jsonpath='{.items[0].status.addresses[0].address}'):$$($(PROA) kubectl get service hello -o jsonpath='{.spec.ports[0].nodePort}')/; \
		echo; echo "$$ curl $$url"; bin/hello get $$url
	@echo "Roll out its second version, without a lost request:"
	@echo "    $(PROA) kubectl set image deployment/hello hello=proa.example/hello:v2"
	@echo "    $(PROA) kubectl rollout status deployment/hello"
	@echo "Stop the cluster: make down. Remove it with everything in it: make reset."

.PHONY: down
down: ## Stop the cluster; containers and data stay
	$(PROA) down

.PHONY: reset
reset: ## Remove the cluster with its containers and data
	$(PROA) reset

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: vet
vet: $(HELPER) $(KUBECTL)
	@test -z "$$(gofmt -l cmd internal test examples)" || { gofmt -l cmd internal test examples; exit 1; }
	$(GO) vet -tags $(TAGS),e2e,bench ./...

.PHONY: lint
lint: vet ## Check the code: form, vet, staticcheck
	$(GO) run $(STATICCHECK) -tags $(TAGS),e2e,bench ./cmd/... ./internal/... ./test/... ./examples/...

# What the end-to-end test needs besides Go and gcc.
.PHONY: tools
tools:
	@command -v busybox >/dev/null || { apt-get update -q && apt-get install -y -q busybox-static; } >/dev/null
	@command -v pgrep >/dev/null || apt-get install -y -q procps >/dev/null
	@command -v ip >/dev/null || apt-get install -y -q iproute2 >/dev/null

.PHONY: test
test: tools vet ## Run every test: vet, import rules, units with the race detector, and the real binary (as root)
	$(GO) test -race -tags $(TAGS) ./...
	$(MAKE) build images
	@# The machine's own kubectl, or else the one that proa brings.
	ln -sf proa bin/kubectl
	PATH="$$PATH:$(CURDIR)/bin" $(GO) test -count=1 -tags $(TAGS),e2e -timeout 15m ./test/e2e

bin/pause.tar: test/pause/main.go
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o bin/pause ./test/pause
	$(GO) run ./test/image -o $@ -t proa.example/pause:1 -c /pause bin/pause=/pause

.PHONY: bench
bench: build bin/pause.tar ## Measure: the benchmarks beside the code, then the real binary (as root); writes docs/performance.md
	$(GO) test -run xxx -bench . -benchmem ./internal/store/... ./internal/apiserver/...
	$(GO) run -tags $(TAGS),bench ./test/bench -out docs/performance.md

.PHONY: bench-quick
bench-quick: build bin/pause.tar ## Measure the real binary within a minute (as root); writes nothing
	$(GO) run -tags $(TAGS),bench ./test/bench -quick

.PHONY: conformance
conformance: build ## Run the upstream conformance suite, or FOCUS='regexp' of it (as root); writes docs/conformance.md
	cd test/conformance && $(GO) run . -root ../.. -page ../../docs/conformance.md $(if $(FOCUS),-focus='$(FOCUS)') $(if $(SKIP),-skip='$(SKIP)') $(ARGS)

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin $(HELPER) $(KUBECTL) $(KUBECTL:.zst=.sha256)
