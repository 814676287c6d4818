#define _GNU_SOURCE
#include "spec.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct reader {
	char *at, *end;
	int failed;
};

static char *field(struct reader *r)
{
	if (r->failed || r->at >= r->end) {
		r->failed = 1;
		return (char *)"";
	}
	char *start = r->at;
	r->at += strlen(start) + 1; /* the buffer ends with a NUL */
	return start;
}

static unsigned long long number(struct reader *r)
{
	char *end, *s = field(r);
	errno = 0;
	unsigned long long n = strtoull(s, &end, 10);
	if (errno || end == s || *end)
		r->failed = 1;
	return n;
}

/* Makes room for one more and a NULL at the end: memory doubles when it is full. */
static void *grow(void *list, size_t n, size_t size)
{
	if (!list || (n >= 2 && !(n & (n - 1)))) {
		char *p = malloc((n ? 2 * n : 2) * size + 2 * size);
		if (!p)
			abort();
		if (n)
			memcpy(p, list, n * size);
		list = p;
	}
	memset((char *)list + n * size, 0, 2 * size);
	return list;
}

static void add(char ***list, size_t *n, char *value)
{
	*list = grow(*list, *n, sizeof **list);
	(*list)[(*n)++] = value;
}

int spec_read(const char *path, struct spec *s, char *err, size_t errlen)
{
	memset(s, 0, sizeof *s);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0) {
		snprintf(err, errlen, "open %s: %s", path, strerror(errno));
		return -1;
	}
	char *buf = malloc((size_t)st.st_size + 1);
	if (!buf)
		abort();
	size_t have = 0;
	while (have < (size_t)st.st_size) {
		ssize_t n = read(fd, buf + have, (size_t)st.st_size - have);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		have += (size_t)n;
	}
	close(fd);
	buf[have] = 0;
	struct reader r = {buf, buf + have, 0};
	s->args = grow(NULL, 0, sizeof *s->args);
	s->env = grow(NULL, 0, sizeof *s->env);
	while (r.at < r.end && !r.failed) {
		char *key = field(&r);
		if (!strcmp(key, "arg")) add(&s->args, &s->nargs, field(&r));
		else if (!strcmp(key, "env")) add(&s->env, &s->nenv, field(&r));
		else if (!strcmp(key, "rootfs")) s->rootfs = field(&r);
		else if (!strcmp(key, "cwd")) s->cwd = field(&r);
		else if (!strcmp(key, "log")) s->log = field(&r);
		else if (!strcmp(key, "bundle")) s->bundle = field(&r);
		else if (!strcmp(key, "netns")) s->netns = field(&r);
		else if (!strcmp(key, "ipcns")) s->ipcns = field(&r);
		else if (!strcmp(key, "utsns")) s->utsns = field(&r);
		else if (!strcmp(key, "pidns")) s->pidns = field(&r);
		else if (!strcmp(key, "new-pidns")) s->new_pidns = 1;
		else if (!strcmp(key, "new-cgroupns")) s->new_cgroupns = 1;
		else if (!strcmp(key, "own-dev")) s->own_dev = 1;
		else if (!strcmp(key, "cgroup")) add(&s->cgroups, &s->ncgroups, field(&r));
		else if (!strcmp(key, "cgroup-folder")) s->cgroup = field(&r);
		else if (!strcmp(key, "masked")) add(&s->masked, &s->nmasked, field(&r));
		else if (!strcmp(key, "readonly")) add(&s->readonly, &s->nreadonly, field(&r));
		else if (!strcmp(key, "uid")) s->uid = (uid_t)number(&r);
		else if (!strcmp(key, "gid")) s->gid = (gid_t)number(&r);
		else if (!strcmp(key, "group")) {
			s->groups = grow(s->groups, s->ngroups, sizeof *s->groups);
			s->groups[s->ngroups++] = (gid_t)number(&r);
		}
		else if (!strcmp(key, "caps")) s->caps = number(&r);
		else if (!strcmp(key, "no-new-privs")) s->no_new_privs = 1;
		else if (!strcmp(key, "readonly-root")) s->readonly_root = 1;
		else if (!strcmp(key, "tty")) s->tty = 1;
		else if (!strcmp(key, "stdin")) s->open_stdin = 1;
		else if (!strcmp(key, "stdin-once")) s->stdin_once = 1;
		else if (!strcmp(key, "oom-score-adj")) { s->has_oom = 1; char *v = field(&r); unsigned long long end = 0; char *rest; end = strtoull(v + (*v == '-'), &rest, 10); s->oom_score_adj = *v == '-' ? -(int)end : (int)end; }
		else if (!strcmp(key, "seccomp")) s->seccomp = field(&r);
		else if (!strcmp(key, "apparmor")) s->apparmor = field(&r);
		else if (!strcmp(key, "seccomp-flags")) s->seccomp_flags = (unsigned)number(&r);
		else if (!strcmp(key, "rlimit")) {
			s->rlimits = grow(s->rlimits, s->nrlimits, sizeof *s->rlimits);
			struct rlimit_spec *l = &s->rlimits[s->nrlimits++];
			l->resource = (int)number(&r);
			l->soft = number(&r);
			l->hard = number(&r);
		}
		else if (!strcmp(key, "device")) {
			s->devices = grow(s->devices, s->ndevices, sizeof *s->devices);
			struct device_spec *d = &s->devices[s->ndevices++];
			d->path = field(&r);
			d->mode = (mode_t)number(&r);
			d->major = (unsigned)number(&r);
			d->minor = (unsigned)number(&r);
			d->uid = (uid_t)number(&r);
			d->gid = (gid_t)number(&r);
		}
		else if (!strcmp(key, "mount")) {
			s->mounts = grow(s->mounts, s->nmounts, sizeof *s->mounts);
			struct mount_spec *m = &s->mounts[s->nmounts++];
			m->source = field(&r);
			m->target = field(&r);
			m->type = field(&r);
			m->flags = number(&r);
			m->propagation = number(&r);
			m->data = field(&r);
			m->file = (int)number(&r);
			m->all_readonly = (int)number(&r);
			m->tree = -1;
		}
		else {
			snprintf(err, errlen, "%s: unknown keyword %s", path, key);
			return -1;
		}
	}
	if (r.failed) {
		snprintf(err, errlen, "%s: broken record", path);
		return -1;
	}
	return 0;
}
