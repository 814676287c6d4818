package cronjob

import (
	"fmt"
	"time"
	_ "time/tzdata" // zones also on machines that have no list of them

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// manyMissed is from when on missed times are worth a warning.
const manyMissed = 100

// parse reads the schedule in its time zone; reason is that of the event when it is wrong.
func parse(cj *batchv1.CronJob) (s cron.Schedule, reason string, err error) {
	text := cj.Spec.Schedule
	if z := cj.Spec.TimeZone; z != nil {
		if _, err := time.LoadLocation(*z); err != nil {
			return nil, "UnknownTimeZone", fmt.Errorf("invalid timeZone: %q: %w", *z, err)
		}
		text = "TZ=" + *z + " " + text
	}
	if s, err = cron.ParseStandard(text); err != nil {
		return nil, "UnparseableSchedule", fmt.Errorf("unparseable schedule: %q : %w", cj.Spec.Schedule, err)
	}
	return s, "", nil
}

// times works out the newest time of the schedule that is due (zero: none), the next
// after now (zero: never), and how many there were since last, up to manyMissed+1.
// Times before the starting deadline do not count.
func times(s cron.Schedule, last time.Time, deadline *int64, now time.Time) (due, next time.Time, missed int) {
	from := last
	if deadline != nil {
		if earliest := now.Add(-time.Duration(*deadline) * time.Second); earliest.After(from) {
			from = earliest
		}
	}
	// After a long pause only the newest is of interest: it is looked for by steps
	// that double, back from now.
	if s.Next(from).After(now) {
		return due, s.Next(now), 0
	}
	for t := s.Next(from); !t.IsZero() && !t.After(now) && missed <= manyMissed; t = s.Next(t) {
		due = t
		missed++
	}
	if missed > manyMissed {
		for back := time.Minute; now.Add(-back).After(from); back *= 2 {
			t := s.Next(now.Add(-back))
			if t.IsZero() || t.After(now) {
				continue
			}
			for ; !t.IsZero() && !t.After(now); t = s.Next(t) {
				due = t
			}
			break
		}
	}
	return due, s.Next(now), missed
}
