#ifndef PROA_MONITOR_H
#define PROA_MONITOR_H

/* Runs the container of a spec and stays until it has ended. */
int monitor(const char *spec);

#endif
