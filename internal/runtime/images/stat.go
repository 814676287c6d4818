package images

import "syscall"

type unixStat = syscall.Stat_t
