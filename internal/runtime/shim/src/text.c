/* The rest of the C library's part: memory and text. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
	char *a = to;
	const char *b = from;
	while (n--)
		*a++ = *b++;
	return to;
}

void *memmove(void *to, const void *from, size_t n)
{
	char *a = to;
	const char *b = from;
	if (a < b)
		for (size_t i = 0; i < n; i++)
			a[i] = b[i];
	else
		while (n--)
			a[n] = b[n];
	return to;
}

void *memset(void *to, int c, size_t n)
{
	for (char *a = to; n--;)
		*a++ = (char)c;
	return to;
}

void *memchr(const void *in, int c, size_t n)
{
	for (const unsigned char *a = in; n--; a++)
		if (*a == (unsigned char)c)
			return (void *)a;
	return NULL;
}

size_t strlen(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}

int strcmp(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return (unsigned char)*a - (unsigned char)*b;
}

int strncmp(const char *a, const char *b, size_t n)
{
	while (n && *a && *a == *b)
		a++, b++, n--;
	return n ? (unsigned char)*a - (unsigned char)*b : 0;
}

char *strcpy(char *restrict to, const char *restrict from)
{
	return memcpy(to, from, strlen(from) + 1);
}

char *strchr(const char *s, int c)
{
	return memchr(s, c, strlen(s) + 1);
}

char *strrchr(const char *s, int c)
{
	for (size_t n = strlen(s) + 1; n--;)
		if (s[n] == (char)c)
			return (char *)s + n;
	return NULL;
}

size_t strcspn(const char *s, const char *stop)
{
	size_t n = 0;
	while (s[n] && !strchr(stop, s[n]))
		n++;
	return n;
}

size_t strspn(const char *s, const char *of)
{
	size_t n = 0;
	while (s[n] && strchr(of, s[n]))
		n++;
	return n;
}

/* Decimal numbers, which is all that is written for the helper. */
unsigned long long strtoull(const char *restrict s, char **restrict end, int base)
{
	unsigned long long n = 0;
	(void)base;
	for (; *s >= '0' && *s <= '9'; s++)
		if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, *s - '0', &n))
			errno = ERANGE;
	*end = (char *)s;
	return n;
}

/* Memory is given out of large pieces, and kept. */
void *malloc(size_t n)
{
	static char *at, *end;
	n = (n + 15) & ~(size_t)15;
	if (n > (size_t)(end - at)) {
		size_t piece = n > 65536 ? n : 65536;
		void *p = mmap(NULL, piece, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			return NULL;
		at = p;
		end = at + piece;
	}
	at += n;
	return at - n;
}

static void put(char *to, size_t room, size_t *n, char c)
{
	if (*n + 1 < room)
		to[*n] = c;
	++*n;
}

/* Knows %s, %c, %%, and %d, %u with l, ll, and a width filled with zeros. */
int vsnprintf(char *restrict to, size_t room, const char *restrict f, va_list ap)
{
	size_t n = 0;
	for (; *f; f++) {
		if (*f != '%') {
			put(to, room, &n, *f);
			continue;
		}
		int width = 0, size = 0;
		for (f++; *f >= '0' && *f <= '9'; f++)
			width = width * 10 + *f - '0';
		for (; *f == 'l'; f++)
			size++;
		if (*f == 's') {
			for (const char *s = va_arg(ap, const char *); *s; s++)
				put(to, room, &n, *s);
		} else if (*f == 'c') {
			put(to, room, &n, (char)va_arg(ap, int));
		} else if (*f == 'd' || *f == 'u') {
			long long v = size ? va_arg(ap, long) : *f == 'd' ? va_arg(ap, int) : (long long)va_arg(ap, unsigned);
			unsigned long long u = v < 0 && *f == 'd' ? -(unsigned long long)v : (unsigned long long)v;
			char digits[24];
			int len = 0;
			do
				digits[len++] = (char)('0' + u % 10);
			while (u /= 10);
			while (len < width && len < (int)sizeof digits)
				digits[len++] = '0';
			if (v < 0 && *f == 'd')
				put(to, room, &n, '-');
			while (len)
				put(to, room, &n, digits[--len]);
		} else {
			put(to, room, &n, '%');
		}
	}
	if (room)
		to[n < room ? n : room - 1] = 0;
	return (int)n;
}

int snprintf(char *restrict to, size_t room, const char *restrict f, ...)
{
	va_list ap;
	va_start(ap, f);
	int n = vsnprintf(to, room, f, ap);
	va_end(ap);
	return n;
}

char *strerror(int e)
{
	static const struct { int number; const char *text; } known[] = {
		{EPERM, "operation not permitted"}, {ENOENT, "no such file or directory"}, {ESRCH, "no such process"}, {EINTR, "interrupted system call"},
		{EIO, "input/output error"}, {ENXIO, "no such device or address"}, {E2BIG, "argument list too long"}, {ENOEXEC, "exec format error"},
		{EBADF, "bad file descriptor"}, {EAGAIN, "resource temporarily unavailable"}, {ENOMEM, "cannot allocate memory"}, {EACCES, "permission denied"},
		{EFAULT, "bad address"}, {EBUSY, "device or resource busy"}, {EEXIST, "file exists"}, {EXDEV, "invalid cross-device link"}, {ENODEV, "no such device"},
		{ENOTDIR, "not a directory"}, {EISDIR, "is a directory"}, {EINVAL, "invalid argument"}, {ENFILE, "too many open files in system"},
		{EMFILE, "too many open files"}, {ENOTTY, "inappropriate ioctl for device"}, {ETXTBSY, "text file busy"}, {ENOSPC, "no space left on device"},
		{EROFS, "read-only file system"}, {EMLINK, "too many links"}, {EPIPE, "broken pipe"}, {ERANGE, "numerical result out of range"},
		{ENAMETOOLONG, "file name too long"}, {ENOSYS, "function not implemented"}, {ELOOP, "too many levels of symbolic links"},
		{EOVERFLOW, "value too large for defined data type"}, {EOPNOTSUPP, "operation not supported"}, {EADDRINUSE, "address already in use"},
		{ECONNREFUSED, "connection refused"}, {ESTALE, "stale file handle"}, {EDQUOT, "disk quota exceeded"}, {EUSERS, "too many users"}};
	static char other[32];
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (known[i].number == e)
			return (char *)known[i].text;
	snprintf(other, sizeof other, "error %d", e);
	return other;
}

/* Looks for a program without a slash in the folders of PATH. */
int execvp(const char *name, char *const argv[])
{
	extern char **environ;
	char path[4096];
	const char *at = "/usr/local/bin:/bin:/usr/bin";
	int denied = 0;
	if (strchr(name, '/'))
		return execve(name, argv, environ);
	for (char **e = environ; *e; e++)
		if (!strncmp(*e, "PATH=", 5))
			at = *e + 5;
	for (;; at++) {
		size_t n = strcspn(at, ":");
		if (*name && n + strlen(name) + 3 < sizeof path) {
			memcpy(path, at, n);
			if (n)
				path[n] = '/';
			strcpy(path + n + (n > 0), name);
			execve(path, argv, environ);
			if (errno == EACCES)
				denied = 1;
			else if (errno != ENOENT && errno != ENOTDIR)
				return -1;
		}
		at += n;
		if (!*at)
			break;
	}
	errno = denied ? EACCES : ENOENT;
	return -1;
}
