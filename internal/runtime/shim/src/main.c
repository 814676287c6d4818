/* proa-shim: the part of the container runtime that outlives it.
 *
 *   proa-shim sandbox DIR HOSTNAME [net|held-net] [ipc] [uts]   pins new namespaces at DIR/net, …; held-net: DIR/net is there
 *   proa-shim first DIR [CGROUP...]                     pins a process namespace at DIR/pid, with a process that stays
 *   proa-shim run SPEC                                  runs a container and stays with it
 *   proa-shim exec SPEC                                 runs a command in a container
 *
 * run and exec talk on descriptor 3, a socket that keeps messages apart. run says
 * "pid N", waits for a word, and says "ok" when the program runs; exec says "tty",
 * with the terminal, where one is wanted, and "ok".
 * Anything else is the text of an error. run then keeps the container's output (CRI
 * log format), serves BUNDLE/ctl.sock, and leaves BUNDLE/exit when the container
 * ends. exec ends its command when the socket is closed.
 */
#define _GNU_SOURCE
#include "child.h"
#include "monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
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

/* A new network namespace has its loopback down. */
static void loopback_up(void)
{
	struct ifreq r = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &r) < 0)
		die(2, "set the loopback up: %s", strerror(errno));
	close(fd);
}

static void join_held(const char *dir)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/net", dir);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET) < 0)
		die(2, "join network namespace %s: %s", path, strerror(errno));
	close(fd);
}

static int sandbox(int argc, char **argv)
{
	int flags = 0;
	for (int i = 4; i < argc; i++)
		if (!strcmp(argv[i], "held-net"))
			join_held(argv[2]);
		else
			flags |= !strcmp(argv[i], "net") ? CLONE_NEWNET : !strcmp(argv[i], "ipc") ? CLONE_NEWIPC : CLONE_NEWUTS;
	if (unshare(flags) < 0)
		die(2, "make namespaces: %s", strerror(errno));
	if ((flags & CLONE_NEWUTS) && sethostname(argv[3], strlen(argv[3])) < 0)
		die(2, "set hostname %s: %s", argv[3], strerror(errno));
	if (flags & CLONE_NEWNET)
		loopback_up();
	for (int i = 4; i < argc; i++)
		if (strcmp(argv[i], "held-net"))
			pin(argv[2], argv[i]);
	/* Sysctls of the namespaces come as name=value lines on standard input. */
	static char lines[65536];
	size_t have = 0;
	for (ssize_t n; have < sizeof lines - 1 && (n = read(0, lines + have, sizeof lines - 1 - have)) > 0;)
		have += (size_t)n;
	for (char *line = lines, *next; *line; line = next) {
		next = line + strcspn(line, "\n");
		if (*next)
			*next++ = 0;
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

/* Leaves nothing of the host to whoever may look into this process. */
static void shut_in(void)
{
	enum { NOBODY = 65535 };
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) < 0 ||
	    mount("empty", "/proc", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=0,mode=555") < 0 || chdir("/proc") < 0 ||
	    syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		die(2, "leave the host's files: %s", strerror(errno));
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
	    setresuid(NOBODY, NOBODY, NOBODY) < 0)
		die(2, "give up privileges: %s", strerror(errno));
}

/* The first process of a process namespace that the containers of a sandbox share:
 * it is there, and buries the dead. It runs until it is killed. */
static int first(int argc, char **argv)
{
	char text[32], net[4096], ipc[4096], uts[4096];
	struct spec s = {.cgroups = argv + 3, .ncgroups = (size_t)argc - 3};
	struct { const char *name; char *path, **where; } joins[] = {{"net", net, &s.netns}, {"ipc", ipc, &s.ipcns}, {"uts", uts, &s.utsns}};
	for (int i = 0; i < 3; i++) {
		snprintf(joins[i].path, sizeof net, "%s/%s", argv[2], joins[i].name);
		if (access(joins[i].path, F_OK) == 0)
			*joins[i].where = joins[i].path;
	}
	if (unshare(CLONE_NEWPID) < 0)
		die(2, "make a process namespace: %s", strerror(errno));
	pid_t child = fork();
	if (child < 0)
		die(2, "fork: %s", strerror(errno));
	if (child > 0) {
		snprintf(net, sizeof net, "%s/pid", argv[2]);
		snprintf(text, sizeof text, "/proc/%d/ns/pid", (int)child);
		int fd = open(net, O_CREAT | O_RDONLY | O_CLOEXEC, 0600);
		if (fd < 0 || mount(text, net, NULL, MS_BIND, NULL) < 0) {
			kill(child, SIGKILL);
			die(2, "pin namespace %s: %s", net, strerror(errno));
		}
		int n = snprintf(text, sizeof text, "%d", (int)child);
		return write(1, text, (size_t)n) == n ? 0 : 1;
	}
	setsid();
	prctl(PR_SET_NAME, "pause", 0, 0, 0);
	join_cgroups(&s, 2);
	join_namespaces(&s, 2);
	shut_in();
	/* What containers see of it are not the host's paths. */
	memset(argv[1], 0, (size_t)(argv[argc - 1] + strlen(argv[argc - 1]) - argv[1]));
	memset(argv[0], 0, strlen(argv[0]));
	strcpy(argv[0], "/pause");
	signal(SIGCHLD, SIG_IGN); /* the kernel buries them */
	close_range(0, ~0U, 0);
	for (;;)
		pause();
}

/* Waits for a command's end, and ends it when whoever asked for it has gone. */
static int attend(pid_t child)
{
	int status, fd = (int)syscall(SYS_pidfd_open, child, 0);
	struct pollfd p[2] = {{fd, POLLIN, 0}, {REPORT, POLLIN, 0}};
	while (fd >= 0 && !(p[0].revents & POLLIN)) {
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			break;
		if (p[1].revents) {
			kill(child, SIGKILL);
			p[1].fd = -1;
			p[1].revents = 0;
		}
	}
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return 127;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void run_command(struct spec *s, int failure[2], int go[2], int slave)
{
	int report = failure[1];
	close(go[1]);
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (setsid() < 0)
		die(report, "setsid: %s", strerror(errno));
	if (s->tty)
		take_terminal(slave, report);
	become(s, report, go[0]);
}

/* The container comes as a descriptor of its process: a number may mean another by now. */
static int exec_in(const char *path)
{
	enum { CONTAINER = 4 };
	struct spec s;
	char text[1024];
	int failure[2], go[2];
	fcntl(REPORT, F_SETFD, FD_CLOEXEC);
	fcntl(CONTAINER, F_SETFD, FD_CLOEXEC);
	if (spec_read(path, &s, text, sizeof text) < 0)
		die(REPORT, "%s", text);
	/* What is in the container must not look into this process on its way there. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	join_cgroups(&s, REPORT);
	int group = open_cgroup(&s, REPORT);
	keep_seccomp(&s, REPORT);
	if (pipe2(failure, O_CLOEXEC) < 0 || pipe2(go, O_CLOEXEC) < 0)
		die(REPORT, "make pipes: %s", strerror(errno));
	if (setns(CONTAINER, CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWCGROUP | CLONE_NEWNS) < 0)
		die(REPORT, "%s: %s", errno == ESRCH ? "container is not running" : "join the container's namespaces", strerror(errno));
	close(CONTAINER);
	int slave = -1, master = s.tty ? new_terminal(&s, &slave, REPORT) : -1;
	if (master >= 0 && send_fd(REPORT, master, "tty") < 0)
		die(REPORT, "hand the terminal over: %s", strerror(errno));
	pid_t child = fork_into(group, 0);
	if (child < 0)
		die(REPORT, "fork: %s", strerror(errno));
	if (child == 0)
		run_command(&s, failure, go, slave);
	close(failure[1]);
	close(go[0]);
	if (s.tty) {
		close(slave);
		close(master);
	}
	/* Only the command holds its streams, so that their end is seen. */
	for (int fd = 0; fd < 3; fd++)
		close(fd);
	(void)!write(go[1], "g", 1);
	close(go[1]);
	ssize_t n = read(failure[0], text, sizeof text - 1);
	close(failure[0]);
	if (n > 0) {
		text[n] = 0;
		waitpid(child, NULL, 0);
		die(REPORT, "%s", text);
	}
	(void)!send(REPORT, "ok", 2, MSG_NOSIGNAL);
	return attend(child);
}

int main(int argc, char **argv)
{
	if (argc >= 4 && !strcmp(argv[1], "sandbox"))
		return sandbox(argc, argv);
	if (argc == 3 && !strcmp(argv[1], "run"))
		return monitor(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "exec"))
		return exec_in(argv[2]);
	if (argc >= 3 && !strcmp(argv[1], "first"))
		return first(argc, argv);
	die(2, "usage: proa-shim sandbox|first|run|exec ...\n");
}
