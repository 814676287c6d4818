#define _GNU_SOURCE
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

extern char **environ;

void die(int report, const char *format, ...)
{
	char text[1024];
	va_list ap;
	va_start(ap, format);
	int n = vsnprintf(text, sizeof text, format, ap);
	va_end(ap);
	if (n > (int)sizeof text - 1)
		n = sizeof text - 1;
	ssize_t done = write(report, text, (size_t)n);
	(void)done; /* nobody is left to tell */
	_exit(127);
}

void join_cgroups(const struct spec *s, int report)
{
	for (size_t i = 0; i < s->ncgroups; i++) {
		int fd = open(s->cgroups[i], O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) != 1)
			die(report, "join cgroup %s: %s", s->cgroups[i], strerror(errno));
		close(fd);
	}
}

int open_cgroup(const struct spec *s, int report)
{
	int fd = s->cgroup ? open(s->cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	if (s->cgroup && fd < 0)
		die(report, "open cgroup %s: %s", s->cgroup, strerror(errno));
	return fd;
}

pid_t fork_into(int cgroup, unsigned long long flags)
{
	struct clone_args args = {.flags = flags | (cgroup < 0 ? 0 : CLONE_INTO_CGROUP), .exit_signal = SIGCHLD, .cgroup = cgroup < 0 ? 0 : (unsigned long long)cgroup};
	return (pid_t)syscall(SYS_clone3, &args, sizeof args);
}

static void join(const char *path, int kind, int report)
{
	if (!path)
		return;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, kind) < 0)
		die(report, "join namespace %s: %s", path, strerror(errno));
	close(fd);
}

void join_namespaces(const struct spec *s, int report)
{
	join(s->ipcns, CLONE_NEWIPC, report);
	join(s->utsns, CLONE_NEWUTS, report);
	join(s->netns, CLONE_NEWNET, report);
}

/* Opens a path as the container will see it: absolute links and ".." stay inside root. */
static int open_inside(int root, const char *path, int flags)
{
	struct open_how how;
	memset(&how, 0, sizeof how);
	how.flags = (unsigned long long)(flags | O_CLOEXEC);
	how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
	return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

/* Opens the target of a mount, made with its parents when it does not exist. */
static int open_target(int root, const char *path, int file, int report)
{
	int fd = open_inside(root, path, O_PATH);
	if (fd >= 0)
		return fd;
	if (errno != ENOENT)
		die(report, "open mount target %s: %s", path, strerror(errno));
	char part[4096];
	if (strlen(path) >= sizeof part)
		die(report, "mount target %s: name too long", path);
	size_t len = strlen(path);
	int parent = open_inside(root, "/", O_PATH | O_DIRECTORY);
	if (parent < 0)
		die(report, "open the root: %s", strerror(errno));
	for (size_t i = 0; i < len;) {
		while (i < len && path[i] == '/')
			i++;
		size_t start = i;
		while (i < len && path[i] != '/')
			i++;
		if (i == start)
			break;
		memcpy(part, path, i);
		part[i] = 0;
		const char *name = part + start;
		int last = i == len || strspn(path + i, "/") == len - i;
		int next = open_inside(root, part, O_PATH);
		if (next < 0 && errno == ENOENT) {
			if (last && file) {
				int f = openat(parent, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0644);
				if (f < 0)
					die(report, "make mount target %s: %s", part, strerror(errno));
				close(f);
			} else if (mkdirat(parent, name, 0755) < 0 && errno != EEXIST) {
				die(report, "make mount target %s: %s", part, strerror(errno));
			}
			next = open_inside(root, part, O_PATH);
		}
		if (next < 0)
			die(report, "open mount target %s: %s", part, strerror(errno));
		close(parent);
		parent = next;
	}
	return parent;
}

static void fd_path(char *buf, size_t len, int fd)
{
	snprintf(buf, len, "/proc/self/fd/%d", fd);
}

/* Takes hold of what a bind mount shows. That must be done while the mounts are
 * still the host's peers: a mount that is shared with the host can be had only then. */
static void take_source(struct mount_spec *m, int report)
{
	if (!(m->flags & MS_BIND) || (m->flags & MS_REMOUNT))
		return;
	unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (m->flags & MS_REC ? AT_RECURSIVE : 0);
	m->tree = (int)syscall(SYS_open_tree, AT_FDCWD, m->source, flags);
	if (m->tree < 0)
		die(report, "mount %s at %s: %s", m->source, m->target, strerror(errno));
}

static void make_all_readonly(const struct mount_spec *m, int fd, int report)
{
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
	if (syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr) < 0)
		die(report, "make %s recursively read-only: %s", m->target, strerror(errno));
}

static void do_mount(int root, const struct mount_spec *m, int report)
{
	char target[64];
	int fd = open_target(root, m->target, m->file, report);
	fd_path(target, sizeof target, fd);
	const char *type = *m->type ? m->type : NULL;
	const char *data = *m->data ? m->data : NULL;
	int failed = m->tree < 0 ? mount(m->source, target, type, m->flags, data)
				 : (int)syscall(SYS_move_mount, m->tree, "", fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	if (failed < 0)
		die(report, "mount %s at %s: %s", m->source, m->target, strerror(errno));
	close(fd);
	if (m->tree < 0)
		return;
	close(m->tree);
	/* The descriptor named what was there before: open what is there now. */
	fd = open_inside(root, m->target, O_PATH);
	if (fd < 0)
		die(report, "open mount %s: %s", m->target, strerror(errno));
	fd_path(target, sizeof target, fd);
	if (m->propagation && mount(NULL, target, NULL, m->propagation, NULL) < 0)
		die(report, "set propagation of %s: %s", m->target, strerror(errno));
	if (m->flags & ~(unsigned long)(MS_BIND | MS_REC)) {
		/* A bind takes its other flags only when it is mounted again; those that the
		 * source's mount has locked stay. */
		unsigned long again = m->flags & ~(unsigned long)MS_REC;
		if (mount(NULL, target, NULL, again | MS_REMOUNT, NULL) < 0 &&
		    mount(NULL, target, NULL, again | MS_REMOUNT | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
			die(report, "remount %s read-only: %s", m->target, strerror(errno));
	}
	if (m->all_readonly)
		make_all_readonly(m, fd, report);
	close(fd);
}

/* Makes the devices that the container was given. */
static void give_devices(const struct spec *s, int root, int report)
{
	char parent[4096];
	mode_t old = umask(0);
	for (size_t i = 0; i < s->ndevices; i++) {
		const struct device_spec *d = &s->devices[i];
		const char *slash = strrchr(d->path, '/');
		size_t len = slash ? (size_t)(slash - d->path) : 0;
		if (!slash || !slash[1] || len >= sizeof parent)
			die(report, "device path %s", d->path);
		memcpy(parent, d->path, len);
		parent[len] = 0;
		int dir = open_target(root, len ? parent : "/", 0, report);
		if (mknodat(dir, slash + 1, d->mode, makedev(d->major, d->minor)) < 0) {
			if (errno != EEXIST)
				die(report, "make device %s: %s", d->path, strerror(errno));
		} else if (fchownat(dir, slash + 1, d->uid, d->gid, AT_SYMLINK_NOFOLLOW) < 0) {
			die(report, "give device %s away: %s", d->path, strerror(errno));
		}
		close(dir);
	}
	umask(old);
}

static void make_devices(int root, int report)
{
	static const struct { const char *name; unsigned major, minor; } devices[] = {
		{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
	int dev = open_inside(root, "/dev", O_PATH | O_DIRECTORY);
	if (dev < 0)
		die(report, "open /dev: %s", strerror(errno));
	mode_t old = umask(0);
	for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
		if (mknodat(dev, devices[i].name, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor)) < 0 && errno != EEXIST)
			die(report, "make /dev/%s: %s", devices[i].name, strerror(errno));
	static const char *const links[][2] = {{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
		{"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}, {"/proc/kcore", "core"}};
	for (size_t i = 0; i < sizeof links / sizeof *links; i++)
		if (symlinkat(links[i][0], dev, links[i][1]) < 0 && errno != EEXIST)
			die(report, "link /dev/%s: %s", links[i][1], strerror(errno));
	umask(old);
	close(dev);
}

static void mask(int root, const char *path, int report)
{
	char target[64];
	int fd = open_inside(root, path, O_PATH);
	if (fd < 0)
		return; /* not there, nothing to hide */
	struct stat st;
	fd_path(target, sizeof target, fd);
	if (fstat(fd, &st) == 0) {
		int failed = S_ISDIR(st.st_mode) ? mount("tmpfs", target, "tmpfs", MS_RDONLY, "size=0")
						 : mount("/dev/null", target, NULL, MS_BIND, NULL);
		if (failed < 0)
			die(report, "mask %s: %s", path, strerror(errno));
	}
	close(fd);
}

static void make_readonly(int root, const char *path, int report)
{
	char target[64];
	int fd = open_inside(root, path, O_PATH);
	if (fd < 0)
		return;
	fd_path(target, sizeof target, fd);
	if (mount(target, target, NULL, MS_BIND | MS_REC, NULL) < 0)
		die(report, "make %s read-only: %s", path, strerror(errno));
	close(fd);
	if ((fd = open_inside(root, path, O_PATH)) < 0)
		die(report, "make %s read-only: %s", path, strerror(errno));
	fd_path(target, sizeof target, fd);
	if (mount(NULL, target, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		die(report, "make %s read-only: %s", path, strerror(errno));
	close(fd);
}

void enter_rootfs(const struct spec *s, int report)
{
	for (size_t i = 0; i < s->nmounts; i++)
		take_source(&s->mounts[i], report);
	if (mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) < 0)
		die(report, "detach the mounts from the host's: %s", strerror(errno));
	if (mount(s->rootfs, s->rootfs, NULL, MS_BIND | MS_REC, NULL) < 0)
		die(report, "bind %s: %s", s->rootfs, strerror(errno));
	int root = open(s->rootfs, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		die(report, "open %s: %s", s->rootfs, strerror(errno));
	int devices = 0;
	for (size_t i = 0; i < s->nmounts; i++) {
		do_mount(root, &s->mounts[i], report);
		if (s->own_dev && !devices && !strcmp(s->mounts[i].target, "/dev")) {
			make_devices(root, report);
			give_devices(s, root, report);
			devices = 1;
		}
	}
	for (size_t i = 0; i < s->nreadonly; i++)
		make_readonly(root, s->readonly[i], report);
	for (size_t i = 0; i < s->nmasked; i++)
		mask(root, s->masked[i], report);
	if (fchdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0)
		die(report, "move into %s: %s", s->rootfs, strerror(errno));
	/* The old root is on top of the new one now. */
	if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		die(report, "leave the old root: %s", strerror(errno));
	close(root);
	if (s->readonly_root && mount(NULL, "/", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) < 0)
		die(report, "make the root read-only: %s", strerror(errno));
}

static void set_caps(uint64_t caps, int report)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2];
	for (int i = 0; i < 2; i++) {
		uint32_t part = (uint32_t)(caps >> (32 * i));
		data[i].effective = data[i].permitted = part;
		data[i].inheritable = 0;
	}
	if (syscall(SYS_capset, &head, data) < 0)
		die(report, "set capabilities: %s", strerror(errno));
}

void keep_seccomp(struct spec *s, int report)
{
	if (s->seccomp && (s->seccomp_fd = open(s->seccomp, O_RDONLY | O_CLOEXEC)) < 0)
		die(report, "open seccomp program %s: %s", s->seccomp, strerror(errno));
}

static void load_seccomp(const struct spec *s, int report)
{
	static struct sock_filter code[BPF_MAXINSNS];
	ssize_t n = read(s->seccomp_fd, code, sizeof code);
	if (n <= 0 || n % (ssize_t)sizeof *code)
		die(report, "read seccomp program %s: %s", s->seccomp, strerror(errno));
	struct sock_fprog program = {(unsigned short)((size_t)n / sizeof *code), code};
	/* A kernel that does not know a flag loads the program without. */
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, s->seccomp_flags, &program) < 0 &&
	    (errno != EINVAL || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0))
		die(report, "load seccomp program: %s", strerror(errno));
}

void become(const struct spec *s, int report, int go)
{
	for (size_t i = 0; i < s->nrlimits; i++) {
		struct rlimit want = {s->rlimits[i].soft, s->rlimits[i].hard}, have;
		/* Without CAP_SYS_RESOURCE a limit cannot be raised: as far as it goes. */
		if (setrlimit(s->rlimits[i].resource, &want) < 0 && getrlimit(s->rlimits[i].resource, &have) == 0) {
			if (want.rlim_max > have.rlim_max)
				want.rlim_max = have.rlim_max;
			if (want.rlim_cur > want.rlim_max)
				want.rlim_cur = want.rlim_max;
			setrlimit(s->rlimits[i].resource, &want);
		}
	}
	if (s->nargs == 0)
		die(report, "no command specified");
	if (s->apparmor) { /* while this process may still look into itself */
		char text[512];
		int n = snprintf(text, sizeof text, "exec %s", s->apparmor), fd = open("/proc/self/attr/apparmor/exec", O_WRONLY | O_CLOEXEC);
		if (fd < 0 && errno == ENOENT)
			fd = open("/proc/self/attr/exec", O_WRONLY | O_CLOEXEC);
		if (n >= (int)sizeof text || fd < 0 || write(fd, text, (size_t)n) != n)
			die(report, "apply AppArmor profile %s: %s", s->apparmor, strerror(errno));
		close(fd);
	}
	for (int c = 0; c <= CAP_LAST_CAP; c++)
		if (!(s->caps >> c & 1) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0) < 0 && errno != EINVAL)
			die(report, "drop capability %d: %s", c, strerror(errno));
	/* The program is loaded while CAP_SYS_ADMIN is still there, unless privileges
	 * are given up for good anyway. */
	if (s->no_new_privs && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		die(report, "set no_new_privs: %s", strerror(errno));
	if (s->seccomp && !s->no_new_privs)
		load_seccomp(s, report);
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
		die(report, "keep capabilities: %s", strerror(errno));
	if (setgroups(s->ngroups, s->groups) < 0 || setresgid(s->gid, s->gid, s->gid) < 0 || setresuid(s->uid, s->uid, s->uid) < 0)
		die(report, "become user %u:%u: %s", s->uid, s->gid, strerror(errno));
	set_caps(s->caps, report);
	prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0);
	if (s->cwd && chdir(s->cwd) < 0)
		die(report, "chdir to cwd (\"%s\"): %s", s->cwd, strerror(errno));
	/* The change of user has undone this; whoever died before is seen by the pipe's end. */
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	char word;
	if (read(go, &word, 1) != 1)
		_exit(127);
	if (s->seccomp && s->no_new_privs)
		load_seccomp(s, report);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	signal(SIGCHLD, SIG_DFL);
	environ = s->env;
	execvp(s->args[0], s->args);
	if (errno == ENOENT && !strchr(s->args[0], '/'))
		die(report, "exec: \"%s\": executable file not found in $PATH", s->args[0]);
	if (errno == ENOENT)
		die(report, "exec: \"%s\": stat %s: no such file or directory", s->args[0], s->args[0]);
	if (errno == EACCES)
		die(report, "exec: \"%s\": permission denied", s->args[0]);
	die(report, "exec %s: %s", s->args[0], strerror(errno));
}
