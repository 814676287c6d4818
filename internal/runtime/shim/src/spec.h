/* The description of a container as the Go side writes it: records of
 * NUL-terminated fields, a keyword first, with a fixed number of fields for each
 * keyword (see spec.go). */
#ifndef PROA_SPEC_H
#define PROA_SPEC_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct mount_spec {
	char *source, *target, *type, *data;
	unsigned long flags;
	unsigned long propagation;
	int file; /* the target is a file */
	int all_readonly; /* the mounts below it too */
	int tree; /* a bind's source, taken before the mounts are cut off from the host's */
};

struct device_spec {
	char *path;
	mode_t mode;
	unsigned major, minor;
	uid_t uid;
	gid_t gid;
};

struct rlimit_spec {
	int resource;
	unsigned long long soft, hard;
};

struct spec {
	char **args, **env;
	size_t nargs, nenv;
	char *rootfs, *cwd, *log, *bundle;
	char *netns, *ipcns, *utsns, *pidns;
	char **cgroups; /* files to join by, one for each hierarchy of version 1 */
	size_t ncgroups;
	char *cgroup; /* folder, in version 2 */
	struct mount_spec *mounts;
	size_t nmounts;
	struct device_spec *devices;
	size_t ndevices;
	char **masked, **readonly;
	size_t nmasked, nreadonly;
	uid_t uid;
	gid_t gid;
	gid_t *groups;
	size_t ngroups;
	uint64_t caps;
	int no_new_privs, readonly_root, tty, open_stdin, stdin_once, new_pidns, own_dev;
	int oom_score_adj, has_oom;
	struct rlimit_spec *rlimits;
	size_t nrlimits;
	char *seccomp; /* file with a BPF program */
	unsigned seccomp_flags;
	int seccomp_fd;
	char *apparmor; /* profile that the program begins with */
	int new_cgroupns;
};

/* Reads the file; on an error writes why to err and returns -1. */
int spec_read(const char *path, struct spec *s, char *err, size_t errlen);

#endif
