#ifndef PROA_CHILD_H
#define PROA_CHILD_H

#include "spec.h"

/* The descriptor at which whoever runs the helper listens. */
enum { REPORT = 3 };

/* Ends the process after telling on report why: the text goes to whoever asked
 * for the container. */
__attribute__((noreturn, format(printf, 2, 3))) void die(int report, const char *format, ...);

/* Joins the namespaces at the spec's paths (network, ipc, uts). */
void join_namespaces(const struct spec *s, int report);
/* Makes the container's file system and moves into it. */
void enter_rootfs(const struct spec *s, int report);
/* Opens a new terminal of the container's own /dev/pts, in which this process already
 * is, for its user. Returns the side of whoever looks on; the program's is put on
 * slave. */
int new_terminal(const struct spec *s, int *slave, int report);
/* Makes it this session's terminal and its streams. */
void take_terminal(int slave, int report);
/* Hands a descriptor over a socket, with a word. */
int send_fd(int socket, int fd, const char *word);
int receive_fd(int socket);

/* Opens the seccomp program while its path still means it. */
void keep_seccomp(struct spec *s, int report);
/* Gives up what the container may not have, waits for a byte from go, and becomes
 * its program. report is closed by a successful exec. When go ends without a byte
 * the parent has died, and so does this process. */
__attribute__((noreturn)) void become(const struct spec *s, int report, int go);
/* Moves this process into the container's cgroups of version 1. */
void join_cgroups(const struct spec *s, int report);
/* Opens the container's cgroup of version 2, for fork_into; -1 when there is none. */
int open_cgroup(const struct spec *s, int report);
/* Forks with clone flags; the child begins in the cgroup: moving it there later would
 * stop every fork of the machine for a moment. */
pid_t fork_into(int cgroup, unsigned long long flags);

#endif
