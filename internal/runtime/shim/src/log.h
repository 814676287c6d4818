#ifndef PROA_LOG_H
#define PROA_LOG_H

#include <stddef.h>

enum { LINE = 16384 };

/* A stream of output on its way to the log. */
struct stream {
	const char *name;
	int fd; /* -1: at its end */
	size_t len;
	char buf[LINE];
};

/* Opens the log's path, anew after a rotation. */
void log_open(const char *path);
/* Reads what there is; returns 0 at the end of the stream. */
int stream_pump(struct stream *s, int which);
/* Writes down what came without the end of its line. */
void stream_end(struct stream *s);
/* Gets all output; the monitor has it. */
void fan_out(int which, const char *b, size_t n);

#endif
