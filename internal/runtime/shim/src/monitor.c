#define _GNU_SOURCE
#include "monitor.h"
#include "child.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CLIENTS = 32, PIECE = 4096, FRAME = 5, LATE_OUTPUT = 200, LATE_READERS = 5000 };

/* Whoever is connected to the control socket. */
struct client {
	int fd;
	int attached; /* gets the output */
	int feeds;    /* its bytes are the container's input */
	int quiet;    /* has said all that it will, and still gets the output */
	int waits;    /* is told of the end by the end of the connection */
	size_t len;   /* of the command so far; sizeof cmd: it is complete */
	char cmd[64];
	char *out; /* what the client has not taken yet; mapped while it is needed */
	size_t out_at, out_len;
};

/* Nothing is read of the container while a client is behind: one piece and an answer fit. */
enum { OUT = LINE + 256 };

static struct spec spec;
static struct client clients[MAX_CLIENTS];
static size_t nclients;
static pid_t container;
static int ended, status;
/* The container's input, and what of it the container has not read yet. */
static int input = -1, terminal = -1, input_ends;
static char pending[PIECE];
static struct stream streams[2];
static size_t pending_at, pending_len;

static void close_input(void)
{
	if (input >= 0 && input != terminal)
		close(input);
	input = -1;
	pending_len = 0;
}

static void unmap(struct client *c)
{
	if (c->out)
		munmap(c->out, OUT);
	c->out = NULL;
	c->out_at = c->out_len = 0;
}

/* The container's input ends with that of the first who feeds it, if it was asked for so. */
static void end_input(struct client *c)
{
	if (c->feeds && spec.stdin_once) {
		if (pending_len)
			input_ends = 1;
		else
			close_input();
	}
	c->feeds = 0;
}

static void drop(size_t i)
{
	end_input(&clients[i]);
	close(clients[i].fd);
	unmap(&clients[i]);
	clients[i] = clients[--nclients];
}

/* Sends what waits; returns -1 when the client has gone. */
static int flush(struct client *c)
{
	while (c->out_len) {
		ssize_t n = send(c->fd, c->out + c->out_at, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -1;
		c->out_at += (size_t)n;
		c->out_len -= (size_t)n;
	}
	unmap(c);
	return 0;
}

static int enqueue(struct client *c, const char *b, size_t n)
{
	if (!c->out) {
		void *p = mmap(NULL, OUT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			return -1;
		c->out = p;
	}
	if (c->out_len + n > OUT)
		return -1;
	memmove(c->out, c->out + c->out_at, c->out_len);
	memcpy(c->out + c->out_len, b, n);
	c->out_at = 0;
	c->out_len += n;
	return 0;
}

/* Sends output to those who attached: a byte for the stream, the length, the bytes. */
void fan_out(int which, const char *b, size_t n)
{
	char head[FRAME] = {(char)which, (char)(n >> 24), (char)(n >> 16), (char)(n >> 8), (char)n};
	for (size_t i = nclients; i-- > 0;)
		if (clients[i].attached && (enqueue(&clients[i], head, FRAME) < 0 || enqueue(&clients[i], b, n) < 0 || flush(&clients[i]) < 0))
			drop(i);
}

/* Whether someone attached is behind: the container then waits, as it would for a pipe. */
static int behind(void)
{
	for (size_t i = 0; i < nclients; i++)
		if (clients[i].attached && clients[i].out_len)
			return 1;
	return 0;
}

static void feed(void)
{
	while (pending_len && input >= 0) {
		ssize_t n = write(input, pending + pending_at, pending_len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			close_input();
			return;
		}
		pending_at += (size_t)n;
		pending_len -= (size_t)n;
	}
	if (input_ends)
		close_input();
}

/* Carries out a client's command; returns -1 when the client is done with. */
static int command(struct client *c)
{
	char text[32] = "ok\n";
	char *rest;
	if (!strcmp(c->cmd, "wait")) {
		c->waits = 1;
		return ended ? -1 : 0;
	}
	if (!strcmp(c->cmd, "reopen")) {
		log_open(spec.log);
	} else if (!strcmp(c->cmd, "pid")) {
		snprintf(text, sizeof text, "%d\n", (int)container);
	} else if (!strncmp(c->cmd, "resize ", 7)) {
		unsigned long long a = strtoull(c->cmd + 7, &rest, 10), b = *rest ? strtoull(rest + 1, &rest, 10) : 0;
		struct winsize size = {.ws_row = (unsigned short)b, .ws_col = (unsigned short)a};
		if (terminal >= 0)
			ioctl(terminal, TIOCSWINSZ, &size);
	} else if (!strcmp(c->cmd, "attach") || !strcmp(c->cmd, "attach-stdin")) {
		c->attached = 1;
		c->feeds = c->cmd[6] == '-' && input >= 0;
	} else {
		snprintf(text, sizeof text, "unknown command\n");
	}
	return enqueue(c, text, strlen(text)) < 0 ? -1 : flush(c);
}

/* Reads a client: one command line, then, when it feeds, the container's input. */
static int serve(struct client *c)
{
	char b[PIECE];
	ssize_t n = recv(c->fd, b, sizeof b, MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -1;
	if (n == 0) {
		if (!c->feeds)
			return -1;
		end_input(c);
		c->quiet = 1;
		return 0;
	}
	ssize_t at = 0;
	if (c->len < sizeof c->cmd) {
		while (at < n && b[at] != '\n') {
			if (c->len == sizeof c->cmd - 1)
				return -1;
			c->cmd[c->len++] = b[at++];
		}
		if (at == n)
			return 0;
		at++;
		c->cmd[c->len] = 0;
		c->len = sizeof c->cmd;
		if (command(c) < 0)
			return -1;
	}
	if (c->feeds && at < n && input >= 0) {
		memcpy(pending, b + at, (size_t)(n - at));
		pending_at = 0;
		pending_len = (size_t)(n - at);
		feed();
	}
	return 0;
}

static int listen_at(const char *bundle)
{
	/* A path may be longer than a socket's name: go there instead. */
	struct sockaddr_un addr = {.sun_family = AF_UNIX, .sun_path = "ctl.sock"};
	if (chdir(bundle) < 0)
		die(REPORT, "enter %s: %s", bundle, strerror(errno));
	unlink("ctl.sock");
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	mode_t old = umask(077);
	if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0 || listen(fd, 16) < 0)
		die(REPORT, "listen at %s/ctl.sock: %s", bundle, strerror(errno));
	umask(old);
	return fd;
}

/* Writes down how the container ended: code, signal, time in nanoseconds, and why
 * its program could not be started. */
static void leave_status(int code, int sig, const char *why)
{
	char text[1200];
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	int n = snprintf(text, sizeof text, "%d %d %lld%09ld\n%s", code, sig, (long long)now.tv_sec, now.tv_nsec, why);
	if (n >= (int)sizeof text)
		n = sizeof text - 1;
	int fd = open("exit.tmp", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, text, (size_t)n) != n || close(fd) < 0 || rename("exit.tmp", "exit") < 0)
		_exit(1); /* without the file the other side reports an unknown end */
}

struct wires {
	int in[2], out[2], err[2];
	int console[2]; /* the child hands its terminal over */
	int failure[2]; /* why the child could not become the program; closed by exec */
	int go[2];      /* the child waits here before it becomes the program */
};

/* Shows the terminal as /dev/console too. */
static void console(int report)
{
	int fd = open("/dev/console", O_CREAT | O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0 || mount("/proc/self/fd/0", "/dev/console", NULL, MS_BIND, NULL) < 0)
		die(report, "mount /dev/console: %s", strerror(errno));
	close(fd);
}

static void become_container(struct wires *w)
{
	int report = w->failure[1];
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* a container does not outlive its monitor */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);        /* nobody in a shared process namespace looks into it */
	close(w->go[1]);
	join_cgroups(&spec, report);
	if (spec.has_oom) {
		char text[16];
		int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC), n = snprintf(text, sizeof text, "%d", spec.oom_score_adj);
		/* Lowering it may be forbidden: the container runs with what it has. */
		if (fd >= 0) {
			ssize_t done = write(fd, text, (size_t)n);
			(void)done;
			close(fd);
		}
	}
	if (spec.new_cgroupns && unshare(CLONE_NEWCGROUP) < 0)
		die(report, "make a cgroup namespace: %s", strerror(errno));
	join_namespaces(&spec, report);
	if (setsid() < 0)
		die(report, "setsid: %s", strerror(errno));
	int null = -1;
	if (!spec.tty) {
		if (!spec.open_stdin && (null = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
			die(report, "open /dev/null: %s", strerror(errno));
		if (dup2(spec.open_stdin ? w->in[0] : null, 0) < 0 || dup2(w->out[1], 1) < 0 || dup2(w->err[1], 2) < 0)
			die(report, "set the streams: %s", strerror(errno));
	}
	/* Everything else but the report is closed by exec. */
	keep_seccomp(&spec, report);
	enter_rootfs(&spec, report);
	if (spec.tty) {
		int slave, master = new_terminal(&spec, &slave, report);
		if (send_fd(w->console[1], master, "tty") < 0)
			die(report, "hand the terminal over: %s", strerror(errno));
		take_terminal(slave, report);
		console(report);
	}
	for (int fd = 0; fd < 3 && !spec.tty; fd++)
		if (fd || spec.open_stdin)
			(void)!fchown(fd, spec.uid, (gid_t)-1);
	become(&spec, report, w->go[0]);
}

/* Starts the container and stays until its program runs. The other side writes
 * down that it does before it says go: without the word nothing runs, so a server
 * that dies on the way leaves nothing that it does not know of. */
static void launch(struct wires *w)
{
	char text[1024];
	if (spec.pidns) {
		int fd = open(spec.pidns, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || setns(fd, CLONE_NEWPID) < 0)
			die(REPORT, "join process namespace %s: %s", spec.pidns, strerror(errno));
		close(fd);
	}
	int group = open_cgroup(&spec, REPORT);
	container = fork_into(group, CLONE_NEWNS | (spec.new_pidns ? CLONE_NEWPID : 0));
	if (container < 0)
		die(REPORT, "clone: %s", strerror(errno));
	if (container == 0)
		become_container(w);
	if (group >= 0)
		close(group);
	close(w->failure[1]);
	close(w->go[0]);
	if (spec.tty) {
		close(w->console[1]);
		input = terminal = receive_fd(w->console[0]); /* without one, the child says why */
		close(w->console[0]);
		if (terminal >= 0)
			fcntl(terminal, F_SETFL, O_NONBLOCK | O_RDWR);
	}
	int n = snprintf(text, sizeof text, "pid %d", (int)container);
	(void)!send(REPORT, text, (size_t)n, MSG_NOSIGNAL);
	if (recv(REPORT, text, sizeof text, 0) <= 0) {
		kill(container, SIGKILL);
		waitpid(container, NULL, 0);
		unlink("ctl.sock");
		_exit(1);
	}
	(void)!write(w->go[1], "g", 1);
	close(w->go[1]);
	ssize_t got = read(w->failure[0], text, sizeof text - 1);
	close(w->failure[0]);
	if (got > 0) { /* exec would have closed the pipe */
		text[got] = 0;
		waitpid(container, NULL, 0);
		leave_status(128, 0, text);
		die(REPORT, "%s", text);
	}
	(void)!send(REPORT, "ok", 2, MSG_NOSIGNAL);
	close(REPORT);
}

static void open_wires(struct wires *w)
{
	memset(w, 0xff, sizeof *w);
	if (spec.tty) {
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, w->console) < 0)
			die(REPORT, "make a socket: %s", strerror(errno));
	} else if (pipe2(w->out, O_CLOEXEC) < 0 || pipe2(w->err, O_CLOEXEC) < 0 || (spec.open_stdin && pipe2(w->in, O_CLOEXEC) < 0)) {
		die(REPORT, "make pipes: %s", strerror(errno));
	} else if (spec.open_stdin) {
		input = w->in[1];
	}
	if (input >= 0)
		fcntl(input, F_SETFL, O_NONBLOCK | O_WRONLY);
	if (pipe2(w->failure, O_CLOEXEC) < 0 || pipe2(w->go, O_CLOEXEC) < 0)
		die(REPORT, "make pipes: %s", strerror(errno));
}

static void close_wires(struct wires *w)
{
	int done[] = {w->in[0], w->out[1], w->err[1]};
	for (size_t i = 0; i < sizeof done / sizeof *done; i++)
		if (done[i] >= 0)
			close(done[i]);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int fd = 0; fd < 3 && null >= 0; fd++)
		dup2(null, fd);
}

/* One round of waiting and serving; returns 0 when nothing happened in time. */
static int turn(int signals, int control, int timeout)
{
	struct pollfd p[5 + MAX_CLIENTS];
	int wait = behind();
	p[0] = (struct pollfd){signals, POLLIN, 0};
	p[1] = (struct pollfd){nclients < MAX_CLIENTS ? control : -1, POLLIN, 0};
	p[2] = (struct pollfd){pending_len ? input : -1, POLLOUT, 0};
	for (int i = 0; i < 2; i++)
		p[3 + i] = (struct pollfd){wait ? -1 : streams[i].fd, POLLIN, 0};
	size_t count = nclients;
	for (size_t i = 0; i < count; i++) {
		struct client *c = &clients[i];
		short want = (short)(((c->feeds && pending_len) || c->quiet ? 0 : POLLIN) | (c->out_len ? POLLOUT : 0));
		p[5 + i] = (struct pollfd){want || c->quiet ? c->fd : -1, want, 0};
	}
	int ready = poll(p, 5 + count, timeout);
	if (ready < 0)
		return errno == EINTR;
	if (ready == 0)
		return 0;
	if (p[0].revents & POLLIN) {
		struct signalfd_siginfo info;
		if (read(signals, &info, sizeof info) > 0 && info.ssi_signo != SIGCHLD && !ended)
			kill(container, SIGKILL);
		if (!ended && waitpid(container, &status, WNOHANG) == container)
			ended = 1;
	}
	for (int i = 0; i < 2; i++)
		if (p[3 + i].revents && !stream_pump(&streams[i], i + 1))
			streams[i].fd = -1;
	if (p[2].revents)
		feed();
	for (size_t i = count; i-- > 0;) {
		/* Others may have been dropped meanwhile: the place has another's number then. */
		if (!p[5 + i].revents || i >= nclients || clients[i].fd != p[5 + i].fd)
			continue;
		if (((p[5 + i].revents & POLLOUT) && flush(&clients[i]) < 0) ||
		    ((p[5 + i].revents & ~POLLOUT) && (clients[i].quiet || serve(&clients[i]) < 0)))
			drop(i);
	}
	if (p[1].revents & POLLIN) {
		int fd = accept4(control, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0) {
			memset(&clients[nclients], 0, sizeof *clients);
			clients[nclients++].fd = fd;
		}
	}
	return 1;
}

int monitor(const char *path)
{
	char err[512];
	struct wires w;
	fcntl(REPORT, F_SETFD, FD_CLOEXEC);
	if (spec_read(path, &spec, err, sizeof err) < 0)
		die(REPORT, "%s", err);
	setsid();
	signal(SIGPIPE, SIG_IGN);
	sigset_t set;
	sigemptyset(&set);
	int heard[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP};
	for (size_t i = 0; i < sizeof heard / sizeof *heard; i++)
		sigaddset(&set, heard[i]);
	sigprocmask(SIG_BLOCK, &set, NULL);
	log_open(spec.log);
	int control = listen_at(spec.bundle);
	open_wires(&w);
	launch(&w);
	close_wires(&w);

	int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	streams[0].name = "stdout";
	streams[0].fd = spec.tty ? terminal : w.out[0];
	streams[1].name = "stderr";
	streams[1].fd = w.err[0];
	while (!ended)
		turn(signals, control, -1);
	/* What it wrote before its end is still read; a child that escaped may hold the
	 * pipe open for ever. */
	while (streams[0].fd >= 0 || streams[1].fd >= 0)
		if (!turn(signals, control, LATE_OUTPUT))
			break;
	for (int i = 0; i < 2; i++)
		stream_end(&streams[i]);
	leave_status(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), WIFSIGNALED(status) ? WTERMSIG(status) : 0, "");
	for (size_t i = nclients; i-- > 0;)
		if (clients[i].waits)
			drop(i);
	streams[0].fd = streams[1].fd = -1;
	while (behind())
		if (!turn(signals, control, LATE_READERS))
			break;
	return 0;
}
