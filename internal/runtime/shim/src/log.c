#define _GNU_SOURCE
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int log_fd = -1;

void log_open(const char *path)
{
	if (log_fd >= 0)
		close(log_fd);
	log_fd = path && *path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640) : -1;
}

static char *digits(char *at, long n, int width)
{
	for (int i = width; i-- > 0; n /= 10)
		at[i] = (char)('0' + n % 10);
	return at + width;
}

/* Writes a time of RFC 3339 in nanoseconds, UTC. The days of the civil calendar are
 * counted from March, so that leap days come last. */
static char *timestamp(char *at)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	long days = now.tv_sec / 86400 + 719468, second = now.tv_sec % 86400;
	long era = days / 146097, doe = days % 146097;
	long yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	long doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
	long month = mp < 10 ? mp + 3 : mp - 9;
	at = digits(at, yoe + era * 400 + (month <= 2), 4);
	*at++ = '-';
	at = digits(at, month, 2);
	*at++ = '-';
	at = digits(at, doy - (153 * mp + 2) / 5 + 1, 2);
	*at++ = 'T';
	at = digits(at, second / 3600, 2);
	*at++ = ':';
	at = digits(at, second / 60 % 60, 2);
	*at++ = ':';
	at = digits(at, second % 60, 2);
	*at++ = '.';
	at = digits(at, now.tv_nsec, 9);
	*at++ = 'Z';
	*at++ = ' ';
	return at;
}

/* Writes one line in CRI's format: time, stream, F (full) or P (partial), text. */
static void line(const char *name, const char *text, size_t n, int full)
{
	if (log_fd < 0)
		return;
	char head[64], *at = timestamp(head);
	size_t len = strlen(name);
	memcpy(at, name, len);
	at += len;
	*at++ = ' ';
	*at++ = full ? 'F' : 'P';
	*at++ = ' ';
	struct iovec parts[3] = {{head, (size_t)(at - head)}, {(void *)text, n}, {(void *)"\n", 1}};
	size_t left = parts[0].iov_len + n + 1;
	for (int first = 0; left;) {
		ssize_t done = writev(log_fd, parts + first, 3 - first);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return; /* a full disk loses the line, it does not stop the container */
		left -= (size_t)done;
		while (first < 3 && (size_t)done >= parts[first].iov_len)
			done -= (ssize_t)parts[first++].iov_len;
		if (first < 3) {
			parts[first].iov_base = (char *)parts[first].iov_base + done;
			parts[first].iov_len -= (size_t)done;
		}
	}
}

void stream_end(struct stream *s)
{
	if (s->len)
		line(s->name, s->buf, s->len, 0);
	s->len = 0;
}

int stream_pump(struct stream *s, int which)
{
	ssize_t n = read(s->fd, s->buf + s->len, LINE - s->len);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return 1;
	if (n <= 0) {
		stream_end(s);
		return 0;
	}
	fan_out(which, s->buf + s->len, (size_t)n);
	s->len += (size_t)n;
	char *start = s->buf, *end = s->buf + s->len, *nl;
	while ((nl = memchr(start, '\n', (size_t)(end - start)))) {
		line(s->name, start, (size_t)(nl - start), 1);
		start = nl + 1;
	}
	s->len = (size_t)(end - start);
	if (s->len == LINE)
		stream_end(s);
	else
		memmove(s->buf, start, s->len);
	return 1;
}
