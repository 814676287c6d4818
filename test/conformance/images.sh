#!/bin/bash
# Makes the images that the conformance suite asks for, under the names it asks
# for, of what a machine without a registry can get: the suite's own Go programs,
# busybox from its source, and Debian packages in place of Alpine's. As root (owners of files).
#
#   images.sh OUT PACK    OUT: folder for the archives; PACK: the image packer (test/image)
#
# What is made is kept; remove OUT to make it anew.
set -euo pipefail
out=$(realpath -m "$1") pack=$(realpath "$2")
cd "$(dirname "$0")"
export CGO_ENABLED=0 GOFLAGS=-trimpath
kubernetes=k8s.io/kubernetes
src=$(go list -m -f '{{.Dir}}' $kubernetes)
e2e=registry.k8s.io/e2e-test-images
mkdir -p "$out/bin" "$out/deb"

program() { # program NAME PACKAGE: a static Go program of the module
	[ -x "$out/bin/$1" ] || nice go build -ldflags='-s -w' -o "$out/bin/$1" "$2"
}

unpack() { # unpack FOLDER PACKAGE...: Debian packages and the libraries they need
	local root=$1 p; shift
	for p in $(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$@" |
		grep '^[a-z0-9]' | grep -Ev '^(debconf|dpkg|perl|python3|ucf|init-system-helpers|cdebconf|tar|libdebconf|adduser|passwd|systemd|udev|dbus|gcc-|libperl|iproute2-doc|shared-mime|libgd|libx11|libxpm|libxau|libxcb|libxdmcp|fontconfig|fonts)' | sort -u); do
		apt-cache show "$p" >/dev/null 2>&1 || continue # a virtual package
		ls "$out/deb/${p}"_*.deb >/dev/null 2>&1 || (cd "$out/deb" && apt-get download -q "$p" >/dev/null 2>&1) || continue
		dpkg-deb --fsys-tarfile "$out/deb/${p}"_*.deb | tar -x -C "$root" --keep-directory-symlink --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/info/*' --exclude='./usr/lib/x86_64-linux-gnu/gconv/*'
	done
}

# The suite looks at the words and the habits of this very version's shell.
busybox=1.37.0
if [ ! -x "$out/bin/busybox" ]; then
	echo "busybox $busybox"
	build=$(mktemp -d)
	curl -fsS "http://deb.debian.org/debian/pool/main/b/busybox/busybox_$busybox.orig.tar.bz2" | tar -xj -C "$build" --strip-components=1
	make -C "$build" defconfig >/dev/null 2>&1
	sed -i 's/# CONFIG_STATIC is not set/CONFIG_STATIC=y/; s/CONFIG_TC=y/# CONFIG_TC is not set/' "$build/.config"
	nice make -C "$build" "-j$(nproc)" >"$out/busybox.log" 2>&1
	cp "$build/busybox" "$out/bin/busybox"
	rm -rf "$build"
fi

base() { # base FOLDER: a system of busybox
	local root=$1 a
	mkdir -p "$root"/{bin,sbin,etc,tmp,proc,sys,dev,root,home,var/run,var/tmp,var/log,usr/bin,usr/sbin,usr/local/bin,usr/lib,lib,lib64}
	chmod 1777 "$root/tmp" "$root/var/tmp"
	cp "$out/bin/busybox" "$root/bin/busybox"
	for a in $("$out/bin/busybox" --list); do
		[ "$a" = busybox ] || ln -sf busybox "$root/bin/$a"
	done
	for a in env sh id nohup; do ln -sf "/bin/$a" "$root/usr/bin/$a"; done
	printf 'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nbin:x:2:2:bin:/bin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$root/etc/passwd"
	printf 'root:x:0:\ndaemon:x:1:\nbin:x:2:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n' >"$root/etc/group"
	printf 'root:*:19000:0:99999:7:::\n' >"$root/etc/shadow"
	printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
	printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
}

image() { # image FILE FLAG...: packs the folder $root, once
	local file=$1; shift
	"$pack" -o "$out/.$file.tar" -r "$root" "$@"
	mv "$out/.$file.tar" "$out/$file.tar"
	rm -rf "$root"
}

missing() { # missing FILE: whether it is to be made; $root is an empty folder then
	[ ! -s "$out/$1.tar" ] || return 1
	echo "image $1"
	root=$(mktemp -d "$out/root.XXXXXX")
	chmod 755 "$root"
}

version() { # version ID: the tag that the suite asks for
	grep -oP "configs\[$1\] = Config\{.*, \"\K[^\"]+(?=\"\})" "$src/test/utils/image/manifest.go"
}

if missing pause; then
	(cd ../.. && go build -ldflags='-s -w' -o "$root/pause" ./test/pause)
	image pause -t "registry.k8s.io/pause:$(version Pause)" -p /pause -u 65535:65535
fi

if missing busybox; then
	base "$root"
	image busybox -t "$e2e/busybox:$(version BusyBox)" -c sh
fi

if missing agnhost; then
	program agnhost $kubernetes/test/images/agnhost
	(cd hostsdns && program hostsdns .)
	base "$root"
	unpack "$root" libc-bin bash curl bind9-dnsutils bind9-host netcat-openbsd iproute2 iperf socat
	for a in nslookup; do [ ! -e "$root/usr/bin/$a" ] || rm -f "$root/bin/$a"; done
	ln -sf nc.openbsd "$root/bin/nc"; rm -f "$root/bin/ip"
	[ ! -e "$root/sbin/ip" ] || ln -sf /sbin/ip "$root/bin/ip"
	cp "$out/bin/agnhost" "$root/agnhost"
	ln -s agnhost "$root/agnhost-2"
	cp "$out/bin/hostsdns" "$root/coredns"
	mkdir -p "$root/uploads" "$root/var/registry"
	cp "$src"/test/images/agnhost/porter/localhost.{crt,key} "$root/"
	chmod 644 "$root"/localhost.*
	echo 'user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh' >>"$root/etc/passwd"
	printf 'user-defined-in-image:x:1000:user-defined-in-image\ngroup-defined-in-image:x:50000:user-defined-in-image\n' >>"$root/etc/group"
	image agnhost -t "$e2e/agnhost:$(version Agnhost)" -t "$e2e/agnhost:$(version AgnhostPrev)" -p /agnhost -c pause
fi

for n in kitten nautilus; do
	if missing $n; then
		program agnhost $kubernetes/test/images/agnhost
		base "$root"
		cp "$out/bin/agnhost" "$root/agnhost"
		cp "$src"/test/images/$n/html/* "$root/"
		# A spec reads this file, as upstream's images have it, out of a volume of the image.
		printf 'NAME="Alpine Linux"\nID=alpine\n' >"$root/etc/os-release"
		chmod 644 "$root"/*.json "$root"/*.jpg
		image $n -t "$e2e/$n:$(version ${n^})" -p /agnhost -c test-webserver
	fi
done

if missing glibc-dns-testing; then
	base "$root"
	unpack "$root" bash coreutils bind9-dnsutils bind9-host libc-bin
	rm -f "$root/bin/nslookup"
	image glibc-dns-testing -t "$e2e/glibc-dns-testing:$(version GlibcDnsTesting)" -c sh
fi

if missing nginx; then
	base "$root"
	unpack "$root" nginx-light
	mkdir -p "$root"/usr/share/nginx/html "$root"/var/log/nginx "$root"/var/lib/nginx "$root"/run
	rm -f "$root"/etc/nginx/sites-enabled/* "$root"/etc/nginx/modules-enabled/*
	printf '<!DOCTYPE html>\n<html><head><title>Welcome to nginx!</title></head><body><h1>Welcome to nginx!</h1></body></html>\n' >"$root/usr/share/nginx/html/index.html"
	printf 'server {\n  listen 80;\n  listen [::]:80;\n  root /usr/share/nginx/html;\n  index index.html index.htm;\n}\n' >"$root/etc/nginx/sites-enabled/default"
	ln -sf /dev/stdout "$root/var/log/nginx/access.log"
	ln -sf /dev/stderr "$root/var/log/nginx/error.log"
	image nginx -t "$e2e/nginx:$(version Nginx)" -t "$e2e/nginx:$(version NginxNew)" -c nginx -c -g -c 'daemon off;'
fi

if missing nonewprivs; then
	program nnp $kubernetes/test/images/nonewprivs
	base "$root"
	cp "$out/bin/nnp" "$root/usr/local/bin/nnp"
	chmod 4755 "$root/usr/local/bin/nnp"
	image nonewprivs -t "$e2e/nonewprivs:$(version Nonewprivs)" -c nnp
fi

if missing nonroot; then
	base "$root"
	image nonroot -t "$e2e/nonroot:$(version NonRoot)" -u 1234 -c sh
fi

if missing resource-consumer; then
	program consumer $kubernetes/test/images/resource-consumer
	program consume-cpu $kubernetes/test/images/resource-consumer/consume-cpu
	base "$root"
	cp "$out/bin/consumer" "$out/bin/consume-cpu" "$root/"
	image resource-consumer -t "$e2e/resource-consumer:$(version ResourceConsumer)" -p /consumer
fi

if missing regression-issue-74839; then
	program regression-issue-74839 $kubernetes/test/images/regression-issue-74839
	base "$root"
	cp "$out/bin/regression-issue-74839" "$root/"
	image regression-issue-74839 -t "$e2e/regression-issue-74839:$(version RegressionIssue74839)" -p /regression-issue-74839
fi

if missing sample-apiserver; then
	program sample-apiserver k8s.io/sample-apiserver
	base "$root"
	cp "$out/bin/sample-apiserver" "$root/"
	image sample-apiserver -t "$e2e/sample-apiserver:$(version APIServer)" -p /sample-apiserver
fi

if missing etcd; then
	program etcd go.etcd.io/etcd/server/v3
	base "$root"
	cp "$out/bin/etcd" "$root/usr/local/bin/"
	image etcd -t "registry.k8s.io/etcd:$(version Etcd)" -c etcd
fi
