#define _GNU_SOURCE
#include "monitor.h"
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CLIENTS = 32, LINE = 16384, REPORT = 3 };

/* A line of output on its way to the log. */
struct stream {
	const char *name;
	int fd;
	char buf[LINE];
	size_t len;
};

struct client {
	int fd;
	int attached; /* gets the output */
	int feeds;    /* its bytes are the container's input */
	char cmd[64];
	size_t len;
};

static struct spec spec;
static int log_fd = -1, input = -1, terminal = -1;
static struct client clients[MAX_CLIENTS];
static size_t nclients;

static void open_log(void)
{
	if (log_fd >= 0)
		close(log_fd);
	log_fd = spec.log && *spec.log ? open(spec.log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640) : -1;
}

static int write_all(int fd, const char *b, size_t n)
{
	while (n) {
		ssize_t w = write(fd, b, n);
		if (w < 0 && errno == EINTR)
			continue;
		if (w <= 0)
			return -1;
		b += w;
		n -= (size_t)w;
	}
	return 0;
}

/* Writes one line in CRI's format: time, stream, F (full) or P (partial), text. */
static void log_line(const char *name, const char *text, size_t n, int full)
{
	if (log_fd < 0)
		return;
	static char out[LINE + 128];
	struct timespec now;
	struct tm tm;
	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	size_t len = strftime(out, 64, "%Y-%m-%dT%H:%M:%S", &tm);
	len += (size_t)snprintf(out + len, 64, ".%09ldZ %s %s ", now.tv_nsec, name, full ? "F" : "P");
	memcpy(out + len, text, n);
	len += n;
	out[len++] = '\n';
	/* A full disk loses the line, it does not stop the container. */
	(void)write_all(log_fd, out, len);
}

static void drop(size_t i)
{
	if (clients[i].feeds && spec.stdin_once && input >= 0 && input != terminal) {
		close(input);
		input = -1;
	}
	close(clients[i].fd);
	clients[i] = clients[--nclients];
}

/* Sends output to those who attached: a byte for the stream, the length, the bytes. */
static void fan_out(int which, const char *b, size_t n)
{
	unsigned char head[5] = {(unsigned char)which, (unsigned char)(n >> 24), (unsigned char)(n >> 16), (unsigned char)(n >> 8), (unsigned char)n};
	for (size_t i = nclients; i-- > 0;)
		if (clients[i].attached && (write_all(clients[i].fd, (char *)head, 5) < 0 || write_all(clients[i].fd, b, n) < 0))
			drop(i);
}

/* Reads what there is; returns 0 at the end of the stream. */
static int pump(struct stream *s, int which)
{
	ssize_t n = read(s->fd, s->buf + s->len, LINE - s->len);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return 1;
	if (n <= 0) {
		if (s->len)
			log_line(s->name, s->buf, s->len, 0);
		s->len = 0;
		return 0;
	}
	fan_out(which, s->buf + s->len, (size_t)n);
	s->len += (size_t)n;
	char *start = s->buf, *end = s->buf + s->len, *nl;
	while ((nl = memchr(start, '\n', (size_t)(end - start)))) {
		log_line(s->name, start, (size_t)(nl - start), 1);
		start = nl + 1;
	}
	s->len = (size_t)(end - start);
	if (s->len == LINE) {
		log_line(s->name, start, s->len, 0);
		s->len = 0;
	} else {
		memmove(s->buf, start, s->len);
	}
	return 1;
}

static void command(size_t i)
{
	struct client *c = &clients[i];
	int w, h;
	if (!strcmp(c->cmd, "wait")) {
		return; /* it is told by the end of the connection */
	} else if (!strcmp(c->cmd, "reopen")) {
		open_log();
	} else if (sscanf(c->cmd, "resize %d %d", &w, &h) == 2 && terminal >= 0) {
		struct winsize size = {.ws_row = (unsigned short)h, .ws_col = (unsigned short)w};
		ioctl(terminal, TIOCSWINSZ, &size);
	} else if (!strcmp(c->cmd, "attach") || !strcmp(c->cmd, "attach-stdin")) {
		c->attached = 1;
		c->feeds = c->cmd[6] == '-' && input >= 0;
	}
	(void)write_all(c->fd, "ok\n", 3);
}

/* Reads a client: one command line, then, when it feeds, the container's input. */
static void serve(size_t i)
{
	struct client *c = &clients[i];
	char b[4096];
	ssize_t n = read(c->fd, b, sizeof b);
	if (n <= 0) {
		drop(i);
		return;
	}
	ssize_t at = 0;
	if (c->len < sizeof c->cmd) {
		while (at < n && b[at] != '\n' && c->len < sizeof c->cmd - 1)
			c->cmd[c->len++] = b[at++];
		if (at == n)
			return;
		at++;
		c->cmd[c->len] = 0;
		c->len = sizeof c->cmd;
		command(i);
	}
	if (c->feeds && at < n && input >= 0)
		(void)write_all(input, b + at, (size_t)(n - at));
}

static int listen_at(const char *bundle)
{
	/* A path may be longer than a socket's name: go there instead. */
	struct sockaddr_un addr = {.sun_family = AF_UNIX, .sun_path = "ctl.sock"};
	if (chdir(bundle) < 0)
		die(REPORT, "enter %s: %s", bundle, strerror(errno));
	unlink("ctl.sock");
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	mode_t old = umask(077);
	if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0 || listen(fd, 16) < 0)
		die(REPORT, "listen at %s/ctl.sock: %s", bundle, strerror(errno));
	umask(old);
	return fd;
}

static void leave_status(const char *bundle, int status)
{
	char tmp[4096], path[4096], text[128];
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
	int n = snprintf(text, sizeof text, "%d %d %lld%09ld\n", code, WIFSIGNALED(status) ? WTERMSIG(status) : 0, (long long)now.tv_sec, now.tv_nsec);
	snprintf(tmp, sizeof tmp, "%s/exit.tmp", bundle);
	snprintf(path, sizeof path, "%s/exit", bundle);
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write_all(fd, text, (size_t)n) < 0 || close(fd) < 0 || rename(tmp, path) < 0)
		_exit(1); /* without the file the other side reports an unknown end */
}

static pid_t start(int in[2], int out[2], int err[2], int slave, int failure[2], int go[2])
{
	int flags = CLONE_NEWNS | (spec.new_pidns ? CLONE_NEWPID : 0);
	pid_t pid = (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
	if (pid < 0)
		die(REPORT, "clone: %s", strerror(errno));
	if (pid > 0)
		return pid;
	int report = failure[1];
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* a container does not outlive its monitor */
	char c;
	close(go[1]);
	if (read(go[0], &c, 1) != 1)
		_exit(127);
	if (spec.new_cgroupns && unshare(CLONE_NEWCGROUP) < 0)
		die(report, "make a cgroup namespace: %s", strerror(errno));
	join_namespaces(&spec, report);
	if (setsid() < 0)
		die(report, "setsid: %s", strerror(errno));
	int null = -1;
	if (spec.tty) {
		if (dup2(slave, 0) < 0 || dup2(slave, 1) < 0 || dup2(slave, 2) < 0 || ioctl(0, TIOCSCTTY, 0) < 0)
			die(report, "take the terminal: %s", strerror(errno));
	} else {
		if (!spec.open_stdin && (null = open("/dev/null", O_RDONLY)) < 0)
			die(report, "open /dev/null: %s", strerror(errno));
		if (dup2(spec.open_stdin ? in[0] : null, 0) < 0 || dup2(out[1], 1) < 0 || dup2(err[1], 2) < 0)
			die(report, "set the streams: %s", strerror(errno));
	}
	/* Everything else but the report is closed by exec. */
	char seccomp[64];
	if (spec.seccomp) {
		int filter = open(spec.seccomp, O_RDONLY | O_CLOEXEC);
		if (filter < 0)
			die(report, "open seccomp program: %s", strerror(errno));
		snprintf(seccomp, sizeof seccomp, "/proc/self/fd/%d", filter);
		spec.seccomp = seccomp;
	}
	enter_rootfs(&spec, report);
	if (spec.tty)
		(void)fchown(0, spec.uid, (gid_t)-1);
	else
		for (int fd = 0; fd < 3; fd++)
			(void)fchown(fd, spec.uid, (gid_t)-1);
	become(&spec, report);
}

int monitor(const char *path)
{
	char err[512];
	if (spec_read(path, &spec, err, sizeof err) < 0)
		die(REPORT, "%s", err);
	fcntl(REPORT, F_SETFD, FD_CLOEXEC);
	setsid();
	signal(SIGPIPE, SIG_IGN);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	open_log();
	int control = listen_at(spec.bundle);
	int in[2] = {-1, -1}, out[2] = {-1, -1}, er[2] = {-1, -1}, failure[2], go[2], slave = -1;
	if (spec.tty) {
		if (openpty(&terminal, &slave, NULL, NULL, NULL) < 0)
			die(REPORT, "open a terminal: %s", strerror(errno));
		fcntl(terminal, F_SETFD, FD_CLOEXEC);
		fcntl(slave, F_SETFD, FD_CLOEXEC);
		input = terminal;
	} else if (pipe2(out, O_CLOEXEC) < 0 || pipe2(er, O_CLOEXEC) < 0 || pipe2(in, O_CLOEXEC) < 0) {
		die(REPORT, "make pipes: %s", strerror(errno));
	} else if (spec.open_stdin) {
		input = in[1];
	}
	if (pipe2(failure, O_CLOEXEC) < 0 || pipe2(go, O_CLOEXEC) < 0)
		die(REPORT, "make pipes: %s", strerror(errno));
	pid_t pid = start(in, out, er, slave, failure, go);
	join_cgroups(&spec, pid, REPORT);
	if (spec.has_oom) {
		char name[64], text[16];
		snprintf(name, sizeof name, "/proc/%d/oom_score_adj", (int)pid);
		int fd = open(name, O_WRONLY | O_CLOEXEC), n = snprintf(text, sizeof text, "%d", spec.oom_score_adj);
		/* Lowering it may be forbidden: the container runs with what it has. */
		if (fd >= 0) {
			(void)write_all(fd, text, (size_t)n);
			close(fd);
		}
	}
	close(failure[1]);
	close(go[0]);
	(void)write_all(go[1], "g", 1);
	close(go[1]);
	ssize_t n = read(failure[0], err, sizeof err - 1);
	if (n > 0) { /* the child said why it failed; exec would have closed the pipe */
		err[n] = 0;
		waitpid(pid, NULL, 0);
		die(REPORT, "%s", err);
	}
	close(failure[0]);
	if (slave >= 0)
		close(slave);
	close(in[0]);
	close(out[1]);
	close(er[1]);
	n = snprintf(err, sizeof err, "ok %d\n", (int)pid);
	(void)write_all(REPORT, err, (size_t)n);
	close(REPORT);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int fd = 0; fd < 3 && null >= 0; fd++)
		dup2(null, fd);

	int signals = signalfd(-1, &set, SFD_CLOEXEC);
	struct stream streams[2];
	memset(streams, 0, sizeof streams);
	streams[0].name = "stdout";
	streams[0].fd = spec.tty ? terminal : out[0];
	streams[1].name = "stderr";
	streams[1].fd = er[0];
	int open_streams[2] = {1, !spec.tty}, ended = 0, status = 0;
	/* After the end of the container its output is read on for as long as there is
	 * some: a child that escaped may hold the pipe open for ever. */
	while (!ended || open_streams[0] || open_streams[1]) {
		struct pollfd p[4 + MAX_CLIENTS];
		p[0] = (struct pollfd){signals, POLLIN, 0};
		p[1] = (struct pollfd){nclients < MAX_CLIENTS ? control : -1, POLLIN, 0};
		for (int i = 0; i < 2; i++)
			p[2 + i] = (struct pollfd){open_streams[i] ? streams[i].fd : -1, POLLIN, 0};
		size_t count = nclients;
		for (size_t i = 0; i < count; i++)
			p[4 + i] = (struct pollfd){clients[i].fd, POLLIN, 0};
		int ready = poll(p, 4 + count, ended ? 200 : -1);
		if (ready < 0 && errno != EINTR)
			break;
		if (ready == 0)
			break;
		if (p[0].revents & POLLIN) {
			struct signalfd_siginfo info;
			if (read(signals, &info, sizeof info) > 0 && info.ssi_signo != SIGCHLD)
				kill(pid, SIGKILL);
			if (!ended && waitpid(pid, &status, WNOHANG) == pid)
				ended = 1;
		}
		for (int i = 0; i < 2; i++)
			if (p[2 + i].revents)
				open_streams[i] = pump(&streams[i], i + 1);
		for (size_t i = count; i-- > 0;)
			if (p[4 + i].revents && i < nclients && clients[i].fd == p[4 + i].fd)
				serve(i);
		if (p[1].revents & POLLIN) {
			int fd = accept4(control, NULL, NULL, SOCK_CLOEXEC);
			if (fd >= 0) {
				memset(&clients[nclients], 0, sizeof *clients);
				clients[nclients++].fd = fd;
			}
		}
	}
	leave_status(spec.bundle, status);
	return 0;
}
