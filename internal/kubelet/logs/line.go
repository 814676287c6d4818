// Package logs reads and rotates the log files of containers in the format of the
// CRI: "<time> <stream> <tags> <content>". The runtime writes them. Files are opened
// without following symlinks: a container must not make the node read another file.
package logs

import (
	"bytes"
	"errors"
	"time"
)

// Line is one parsed line of a log file.
type Line struct {
	Time    time.Time
	Stream  string
	Partial bool
	// Content without the newline that ends the line of the file, but with the one
	// that ends the container's line.
	Content []byte
}

var (
	errFormat = errors.New("unexpected log line")
	newline   = []byte{'\n'}
)

// Parse splits a line of a log file, with or without its final newline. Content
// aliases b.
func Parse(b []byte) (Line, error) {
	var l Line
	stamp, rest, ok := bytes.Cut(b, []byte{' '})
	if !ok {
		return l, errFormat
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return l, errFormat
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok || (string(stream) != "stdout" && string(stream) != "stderr") {
		return l, errFormat
	}
	tags, content, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return l, errFormat
	}
	first, _, _ := bytes.Cut(tags, []byte{':'})
	l.Time, l.Stream, l.Content = t, string(stream), content
	switch string(first) {
	case "P":
		l.Partial = true
		l.Content = bytes.TrimSuffix(l.Content, newline)
	case "F":
	default:
		return Line{}, errFormat
	}
	return l, nil
}
