/* What the helper needs of a C library, over the kernel's calls: a real one would be
 * most of the helper's memory, and of the time that it takes to start. The headers are
 * the machine's; the helper has one thread. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int last_error;
char **environ;

int *__errno_location(void)
{
	return &last_error;
}

static long raw(long n, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	long r;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return r;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
#else
#error "the helper does not know this machine"
#endif
}

static long done(long r)
{
	if (r < 0 && r > -4096) {
		last_error = (int)-r;
		return -1;
	}
	return r;
}

#define CALL6(n, a, b, c, d, e, f) done(raw(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f)))
#define CALL(n, a, b, c, d) CALL6(n, a, b, c, d, 0, 0)

long syscall(long n, ...)
{
	va_list ap;
	long v[6];
	va_start(ap, n);
	for (int i = 0; i < 6; i++)
		v[i] = va_arg(ap, long);
	va_end(ap);
	return CALL6(n, v[0], v[1], v[2], v[3], v[4], v[5]);
}

void _exit(int code)
{
	for (;;)
		raw(SYS_exit_group, code, 0, 0, 0, 0, 0);
}

void abort(void)
{
	_exit(134);
}

int main(int argc, char **argv);

__attribute__((used, noreturn)) static void begin(long *stack)
{
	int argc = (int)*stack;
	char **argv = (char **)(stack + 1);
	environ = argv + argc + 1;
	_exit(main(argc, argv));
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tmov x0, sp\n\tb begin\n");
#endif

/* Files. */
int open(const char *path, int flags, ...)
{
	va_list ap;
	va_start(ap, flags);
	int mode = va_arg(ap, int);
	va_end(ap);
	return (int)CALL(SYS_openat, AT_FDCWD, path, flags, mode);
}

int openat(int dir, const char *path, int flags, ...)
{
	va_list ap;
	va_start(ap, flags);
	int mode = va_arg(ap, int);
	va_end(ap);
	return (int)CALL(SYS_openat, dir, path, flags, mode);
}

int fcntl(int fd, int what, ...)
{
	va_list ap;
	va_start(ap, what);
	long arg = va_arg(ap, long);
	va_end(ap);
	return (int)CALL(SYS_fcntl, fd, what, arg, 0);
}

int ioctl(int fd, unsigned long what, ...)
{
	va_list ap;
	va_start(ap, what);
	long arg = va_arg(ap, long);
	va_end(ap);
	return (int)CALL(SYS_ioctl, fd, what, arg, 0);
}

int prctl(int what, ...)
{
	va_list ap;
	long v[4];
	va_start(ap, what);
	for (int i = 0; i < 4; i++)
		v[i] = va_arg(ap, long);
	va_end(ap);
	return (int)CALL6(SYS_prctl, what, v[0], v[1], v[2], v[3], 0);
}

int close(int fd) { return (int)CALL(SYS_close, fd, 0, 0, 0); }
int close_range(unsigned first, unsigned last, int flags) { return (int)CALL(SYS_close_range, first, last, flags, 0); }
ssize_t read(int fd, void *b, size_t n) { return CALL(SYS_read, fd, b, n, 0); }
ssize_t write(int fd, const void *b, size_t n) { return CALL(SYS_write, fd, b, n, 0); }
ssize_t writev(int fd, const struct iovec *v, int n) { return CALL(SYS_writev, fd, v, n, 0); }
int fstat(int fd, struct stat *st) { return (int)CALL(SYS_fstat, fd, st, 0, 0); }
int access(const char *path, int mode) { return (int)CALL(SYS_faccessat, AT_FDCWD, path, mode, 0); }
int rename(const char *from, const char *to) { return (int)CALL(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to); }
int unlink(const char *path) { return (int)CALL(SYS_unlinkat, AT_FDCWD, path, 0, 0); }
int mkdirat(int dir, const char *path, mode_t mode) { return (int)CALL(SYS_mkdirat, dir, path, mode, 0); }
int mknodat(int dir, const char *path, mode_t mode, dev_t dev) { return (int)CALL(SYS_mknodat, dir, path, mode, (unsigned)dev); }
int symlinkat(const char *to, int dir, const char *path) { return (int)CALL(SYS_symlinkat, to, dir, path, 0); }
int fchown(int fd, uid_t uid, gid_t gid) { return (int)CALL(SYS_fchown, fd, uid, gid, 0); }
int fchownat(int dir, const char *path, uid_t uid, gid_t gid, int flags) { return (int)CALL6(SYS_fchownat, dir, path, uid, gid, flags, 0); }
int chdir(const char *path) { return (int)CALL(SYS_chdir, path, 0, 0, 0); }
int fchdir(int fd) { return (int)CALL(SYS_fchdir, fd, 0, 0, 0); }
mode_t umask(mode_t mask) { return (mode_t)CALL(SYS_umask, mask, 0, 0, 0); }
int pipe2(int fds[2], int flags) { return (int)CALL(SYS_pipe2, fds, flags, 0, 0); }
int dup2(int from, int to) { return from == to ? to : (int)CALL(SYS_dup3, from, to, 0, 0); }
int mount(const char *from, const char *to, const char *type, unsigned long flags, const void *data) { return (int)CALL6(SYS_mount, from, to, type, flags, data, 0); }
int umount2(const char *path, int flags) { return (int)CALL(SYS_umount2, path, flags, 0, 0); }

int poll(struct pollfd *p, nfds_t n, int timeout)
{
	struct timespec t = {timeout / 1000, timeout % 1000 * 1000000L};
	return (int)CALL6(SYS_ppoll, p, n, timeout < 0 ? NULL : &t, NULL, 8, 0);
}

/* Sockets. */
int socket(int domain, int type, int protocol) { return (int)CALL(SYS_socket, domain, type, protocol, 0); }
int socketpair(int domain, int type, int protocol, int fds[2]) { return (int)CALL(SYS_socketpair, domain, type, protocol, fds); }
int bind(int fd, __CONST_SOCKADDR_ARG to, socklen_t n) { return (int)CALL(SYS_bind, fd, *(struct sockaddr *const *)&to, n, 0); }
int listen(int fd, int n) { return (int)CALL(SYS_listen, fd, n, 0, 0); }
int accept4(int fd, __SOCKADDR_ARG from, socklen_t *n, int flags) { return (int)CALL(SYS_accept4, fd, *(struct sockaddr **)&from, n, flags); }
ssize_t send(int fd, const void *b, size_t n, int flags) { return CALL6(SYS_sendto, fd, b, n, flags, NULL, 0); }
ssize_t recv(int fd, void *b, size_t n, int flags) { return CALL6(SYS_recvfrom, fd, b, n, flags, NULL, NULL); }
ssize_t sendmsg(int fd, const struct msghdr *m, int flags) { return CALL(SYS_sendmsg, fd, m, flags, 0); }
ssize_t recvmsg(int fd, struct msghdr *m, int flags) { return CALL(SYS_recvmsg, fd, m, flags, 0); }

/* Memory. */
void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset) { return (void *)CALL6(SYS_mmap, at, n, prot, flags, fd, offset); }
int munmap(void *at, size_t n) { return (int)CALL(SYS_munmap, at, n, 0, 0); }

/* Processes. */
pid_t fork(void) { return (pid_t)CALL6(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0); }
pid_t waitpid(pid_t pid, int *status, int options) { return (pid_t)CALL(SYS_wait4, pid, status, options, NULL); }
int kill(pid_t pid, int sig) { return (int)CALL(SYS_kill, pid, sig, 0, 0); }
pid_t setsid(void) { return (pid_t)CALL(SYS_setsid, 0, 0, 0, 0); }
int unshare(int flags) { return (int)CALL(SYS_unshare, flags, 0, 0, 0); }
int setns(int fd, int kind) { return (int)CALL(SYS_setns, fd, kind, 0, 0); }
int sethostname(const char *name, size_t n) { return (int)CALL(SYS_sethostname, name, n, 0, 0); }
int setgroups(size_t n, const gid_t *list) { return (int)CALL(SYS_setgroups, n, list, 0, 0); }
int setresgid(gid_t r, gid_t e, gid_t s) { return (int)CALL(SYS_setresgid, r, e, s, 0); }
int setresuid(uid_t r, uid_t e, uid_t s) { return (int)CALL(SYS_setresuid, r, e, s, 0); }
int setrlimit(__rlimit_resource_t what, const struct rlimit *l) { return (int)CALL(SYS_prlimit64, 0, what, l, NULL); }
int getrlimit(__rlimit_resource_t what, struct rlimit *l) { return (int)CALL(SYS_prlimit64, 0, what, NULL, l); }
int pause(void) { return (int)CALL6(SYS_ppoll, NULL, 0, NULL, NULL, 8, 0); }
int clock_gettime(clockid_t id, struct timespec *t) { return (int)CALL(SYS_clock_gettime, id, t, 0, 0); }

/* The kernel's set of signals is a word; the library's begins with it. */
int sigemptyset(sigset_t *s)
{
	*(uint64_t *)s = 0;
	return 0;
}

int sigaddset(sigset_t *s, int sig)
{
	*(uint64_t *)s |= 1ULL << (sig - 1);
	return 0;
}

int sigprocmask(int how, const sigset_t *set, sigset_t *old) { return (int)CALL(SYS_rt_sigprocmask, how, set, old, 8); }
int signalfd(int fd, const sigset_t *set, int flags) { return (int)CALL(SYS_signalfd4, fd, set, 8, flags); }

/* Ignoring and not ignoring: no handler is ever called. */
__sighandler_t signal(int sig, __sighandler_t what)
{
	struct {
		__sighandler_t handler;
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} action = {what, 0, NULL, 0};
	return CALL(SYS_rt_sigaction, sig, &action, NULL, 8) < 0 ? SIG_ERR : SIG_DFL;
}

int execve(const char *path, char *const argv[], char *const env[]) { return (int)CALL(SYS_execve, path, argv, env, 0); }
