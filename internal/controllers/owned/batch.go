package owned

import "sync"

// SlowStart calls fn count times in batches of 1, 2, 4 ... calls at once, and stops
// after a batch with an error: a quota that is full, or a template that is refused,
// is asked once and not count times. It returns how many calls succeeded and the
// first error.
func SlowStart(count int, fn func(i int) error) (int, error) {
	done := 0
	for next, size := 0, 1; next < count; size *= 2 {
		size = min(size, count-next)
		errs := make([]error, size)
		var wg sync.WaitGroup
		for i := 1; i < size; i++ {
			wg.Go(func() { errs[i] = fn(next + i) })
		}
		errs[0] = fn(next)
		wg.Wait()
		next += size
		var first error
		for _, err := range errs {
			if err == nil {
				done++
			} else if first == nil {
				first = err
			}
		}
		if first != nil {
			return done, first
		}
	}
	return done, nil
}
