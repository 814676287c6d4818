/* proa-shim: the part of the container runtime that outlives it.
 *
 *   proa-shim sandbox DIR HOSTNAME [net] [ipc] [uts]   pins new namespaces at DIR/net, …
 *   proa-shim run SPEC                                  runs a container and stays with it
 *   proa-shim exec SPEC                                 runs a command in a container
 *
 * run reports on descriptor 3: "ok PID\n" or the text of an error. It then keeps
 * the container's output (CRI log format), serves BUNDLE/ctl.sock, and leaves
 * BUNDLE/exit when the container ends.
 */
#define _GNU_SOURCE
#include "child.h"
#include "monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void pin(const char *dir, const char *name)
{
	char from[64], to[4096];
	snprintf(from, sizeof from, "/proc/self/ns/%s", name);
	snprintf(to, sizeof to, "%s/%s", dir, name);
	int fd = open(to, O_CREAT | O_RDONLY | O_CLOEXEC, 0600);
	if (fd < 0 || mount(from, to, NULL, MS_BIND, NULL) < 0)
		die(2, "pin namespace %s: %s", to, strerror(errno));
	close(fd);
}

static int sandbox(int argc, char **argv)
{
	int flags = 0;
	for (int i = 4; i < argc; i++)
		flags |= !strcmp(argv[i], "net") ? CLONE_NEWNET : !strcmp(argv[i], "ipc") ? CLONE_NEWIPC : CLONE_NEWUTS;
	if (unshare(flags) < 0)
		die(2, "make namespaces: %s", strerror(errno));
	if ((flags & CLONE_NEWUTS) && sethostname(argv[3], strlen(argv[3])) < 0)
		die(2, "set hostname %s: %s", argv[3], strerror(errno));
	for (int i = 4; i < argc; i++)
		pin(argv[2], argv[i]);
	/* Sysctls of the namespaces come as name=value lines on standard input. */
	char line[1024];
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		char *value = strchr(line, '=');
		if (!value)
			continue;
		*value++ = 0;
		char path[1100];
		snprintf(path, sizeof path, "/proc/sys/%s", line);
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, value, strlen(value)) < 0)
			die(2, "set sysctl %s: %s", line, strerror(errno));
		close(fd);
	}
	return 0;
}

static int exec_in(const char *path)
{
	struct spec s;
	char err[512];
	if (spec_read(path, &s, err, sizeof err) < 0)
		die(3, "%s", err);
	fcntl(3, F_SETFD, FD_CLOEXEC);
	join_cgroups(&s, getpid(), 3);
	char p[64];
	static const struct { const char *name; int kind; } spaces[] = {
		{"ipc", CLONE_NEWIPC}, {"uts", CLONE_NEWUTS}, {"net", CLONE_NEWNET}, {"pid", CLONE_NEWPID}, {"cgroup", CLONE_NEWCGROUP}, {"mnt", CLONE_NEWNS}};
	int fds[6];
	for (int i = 0; i < 6; i++) {
		snprintf(p, sizeof p, "/proc/%d/ns/%s", (int)s.pid, spaces[i].name);
		if ((fds[i] = open(p, O_RDONLY | O_CLOEXEC)) < 0)
			die(3, "container is not running: %s: %s", p, strerror(errno));
	}
	/* The seccomp program lies outside the container's root: keep it open. */
	char seccomp[64];
	int filter = -1;
	if (s.seccomp) {
		filter = open(s.seccomp, O_RDONLY | O_CLOEXEC);
		if (filter < 0)
			die(3, "open seccomp program: %s", strerror(errno));
		snprintf(seccomp, sizeof seccomp, "/proc/self/fd/%d", filter);
		s.seccomp = seccomp;
	}
	for (int i = 0; i < 6; i++)
		if (setns(fds[i], spaces[i].kind) < 0)
			die(3, "join namespace %s: %s", spaces[i].name, strerror(errno));
	pid_t child = fork();
	if (child < 0)
		die(3, "fork: %s", strerror(errno));
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
		if (setsid() < 0)
			die(3, "setsid: %s", strerror(errno));
		if (s.tty && ioctl(0, TIOCSCTTY, 0) < 0)
			die(3, "take the terminal: %s", strerror(errno));
		become(&s, 3);
	}
	close(3);
	/* Only the command holds its streams, so that their end is seen. */
	close(0);
	close(1);
	close(2);
	int status;
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return 127;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	if (argc >= 4 && !strcmp(argv[1], "sandbox"))
		return sandbox(argc, argv);
	if (argc == 3 && !strcmp(argv[1], "run"))
		return monitor(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "exec"))
		return exec_in(argv[2]);
	fprintf(stderr, "usage: proa-shim sandbox|run|exec ...\n");
	return 2;
}
