package job

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// index is the completion index of a pod.
func index(p *corev1.Pod) (int, bool) {
	n, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	return n, err == nil && n >= 0
}

// intervals is a set of indexes as sorted ranges, both ends included: the text form
// of completedIndexes, such as "0,2-4".
type intervals [][2]int

// parseIntervals reads the text form; what lies at or beyond limit is left out.
func parseIntervals(s string, limit int) (out intervals) {
	if s == "" {
		return nil
	}
	for part := range strings.SplitSeq(s, ",") {
		from, to, ranged := strings.Cut(part, "-")
		a, err := strconv.Atoi(from)
		if err != nil {
			return out
		}
		b := a
		if ranged {
			if b, err = strconv.Atoi(to); err != nil {
				return out
			}
		}
		if a >= limit {
			return out
		}
		out = append(out, [2]int{a, min(b, limit-1)})
	}
	return out
}

func (s intervals) has(i int) bool {
	at, found := slices.BinarySearchFunc(s, i, func(r [2]int, i int) int { return r[0] - i })
	return found || at > 0 && s[at-1][1] >= i
}

func (s intervals) count() (n int) {
	for _, r := range s {
		n += r[1] - r[0] + 1
	}
	return n
}

// with returns the set and more indexes.
func (s intervals) with(more []int) intervals {
	all := slices.Clone(s)
	for _, i := range more {
		all = append(all, [2]int{i, i})
	}
	slices.SortFunc(all, func(a, b [2]int) int { return a[0] - b[0] })
	var out intervals
	for _, r := range all {
		if n := len(out); n > 0 && r[0] <= out[n-1][1]+1 {
			out[n-1][1] = max(out[n-1][1], r[1])
			continue
		}
		out = append(out, r)
	}
	return out
}

func (s intervals) String() string {
	var b strings.Builder
	for i, r := range s {
		if i > 0 {
			b.WriteByte(',')
		}
		switch {
		case r[0] == r[1]:
			fmt.Fprintf(&b, "%d", r[0])
		case r[0]+1 == r[1]:
			fmt.Fprintf(&b, "%d,%d", r[0], r[1])
		default:
			fmt.Fprintf(&b, "%d-%d", r[0], r[1])
		}
	}
	return b.String()
}
