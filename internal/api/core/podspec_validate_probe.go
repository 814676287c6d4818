package core

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateProbe(probe *corev1.Probe, p *field.Path, readiness bool) (errs field.ErrorList) {
	if probe == nil {
		return nil
	}
	errs = validateHandler(probe.Exec, probe.HTTPGet, probe.TCPSocket, probe.GRPC, nil, 0, p)
	for _, f := range []struct {
		name  string
		value int32
	}{{"initialDelaySeconds", probe.InitialDelaySeconds}, {"timeoutSeconds", probe.TimeoutSeconds}, {"periodSeconds", probe.PeriodSeconds},
		{"successThreshold", probe.SuccessThreshold}, {"failureThreshold", probe.FailureThreshold}} {
		errs = append(errs, nonnegative(p.Child(f.name), f.value)...)
	}
	if !readiness && probe.SuccessThreshold != 1 {
		errs = append(errs, field.Invalid(p.Child("successThreshold"), probe.SuccessThreshold, "must be 1"))
	}
	if g := probe.TerminationGracePeriodSeconds; g != nil {
		if readiness {
			errs = append(errs, field.Invalid(p.Child("terminationGracePeriodSeconds"), *g, "must not be set for readinessProbes"))
		} else if *g <= 0 {
			errs = append(errs, field.Invalid(p.Child("terminationGracePeriodSeconds"), *g, "must be greater than 0"))
		}
	}
	return errs
}

func (v *specValidator) validateHook(h *corev1.LifecycleHandler, p *field.Path) field.ErrorList {
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if g := v.spec.TerminationGracePeriodSeconds; g != nil {
		grace = *g
	}
	return validateHandler(h.Exec, h.HTTPGet, h.TCPSocket, nil, h.Sleep, grace, p)
}

// validateHandler checks that there is exactly one handler, and that one.
func validateHandler(exec *corev1.ExecAction, http *corev1.HTTPGetAction, tcp *corev1.TCPSocketAction, grpc *corev1.GRPCAction, sleep *corev1.SleepAction, grace int64, p *field.Path) (errs field.ErrorList) {
	n := 0
	first := func(set bool, name string) bool {
		if !set {
			return false
		}
		if n++; n > 1 {
			errs = append(errs, field.Forbidden(p.Child(name), "may not specify more than 1 handler type"))
		}
		return n == 1
	}
	if first(exec != nil, "exec") && len(exec.Command) == 0 {
		errs = append(errs, field.Required(p.Child("exec", "command"), ""))
	}
	if first(http != nil, "httpGet") {
		hp := p.Child("httpGet")
		errs = append(errs, required(hp.Child("path"), http.Path)...)
		errs = append(errs, portNumberOrName(hp.Child("port"), http.Port)...)
		errs = append(errs, among(hp.Child("scheme"), http.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
		for _, h := range http.HTTPHeaders {
			errs = append(errs, invalid(hp.Child("httpHeaders"), h.Name, utilvalidation.IsHTTPHeaderName(h.Name))...)
		}
	}
	if first(tcp != nil, "tcpSocket") {
		errs = append(errs, portNumberOrName(p.Child("tcpSocket", "port"), tcp.Port)...)
	}
	if first(grpc != nil, "grpc") {
		errs = append(errs, port(p.Child("grpc", "port"), grpc.Port)...)
	}
	if first(sleep != nil, "sleep") && (sleep.Seconds < 0 || sleep.Seconds > grace) {
		errs = append(errs, field.Invalid(p.Child("sleep"), sleep.Seconds, fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", grace)))
	}
	if n == 0 {
		errs = append(errs, field.Required(p, "must specify a handler type"))
	}
	return errs
}

// linuxSignals are the names that a stop signal may have (KEP-4960); SIGRTMIN+n and SIGRTMAX-n join them.
var linuxSignals = func() []corev1.Signal {
	list := []corev1.Signal{
		corev1.SIGABRT, corev1.SIGALRM, corev1.SIGBUS, corev1.SIGCHLD, corev1.SIGCLD, corev1.SIGCONT, corev1.SIGFPE, corev1.SIGHUP, corev1.SIGILL,
		corev1.SIGINT, corev1.SIGIO, corev1.SIGIOT, corev1.SIGKILL, corev1.SIGPIPE, corev1.SIGPOLL, corev1.SIGPROF, corev1.SIGPWR, corev1.SIGQUIT,
		corev1.SIGSEGV, corev1.SIGSTKFLT, corev1.SIGSTOP, corev1.SIGSYS, corev1.SIGTERM, corev1.SIGTRAP, corev1.SIGTSTP, corev1.SIGTTIN, corev1.SIGTTOU,
		corev1.SIGURG, corev1.SIGUSR1, corev1.SIGUSR2, corev1.SIGVTALRM, corev1.SIGWINCH, corev1.SIGXCPU, corev1.SIGXFSZ, "SIGRTMIN", "SIGRTMAX",
	}
	for i := 1; i <= 15; i++ {
		list = append(list, corev1.Signal(fmt.Sprintf("SIGRTMIN+%d", i)))
	}
	for i := 1; i <= 14; i++ {
		list = append(list, corev1.Signal(fmt.Sprintf("SIGRTMAX-%d", i)))
	}
	return list
}()

func (v *specValidator) validateStopSignal(s corev1.Signal, p *field.Path) field.ErrorList {
	switch {
	case v.spec.OS == nil || v.spec.OS.Name == "":
		return field.ErrorList{field.Forbidden(p, "may not be set for containers with empty `spec.os.name`")}
	case v.spec.OS.Name == corev1.Windows:
		return among(p, s, corev1.SIGKILL, corev1.SIGTERM)
	}
	return among(p, s, linuxSignals...)
}
