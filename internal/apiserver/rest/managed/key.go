package managed

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// A path element is kept as it stands between the quotes of fieldsV1, escapes
// included: `f:spec`, `k:{\"name\":\"web\"}`, `v:\"x\"`. So a set is read and
// written without looking into its elements, and equal elements are equal strings.

// compareKeys orders path elements as structured-merge-diff does: fields by
// name, list items by the values of their keys, numbers as numbers.
func compareKeys(a, b string) int {
	n := min(len(a), len(b))
	i := 0
	for i < n && a[i] == b[i] {
		i++
	}
	switch {
	case i == len(a) && i == len(b):
		return 0
	case i == len(a):
		return -1
	case i == len(b):
		return 1
	}
	if i < 2 || a[0] == 'f' {
		if strings.IndexByte(a, '\\') >= 0 || strings.IndexByte(b, '\\') >= 0 {
			return compareDecoded(a, b)
		}
		return int(a[i]) - int(b[i])
	}
	if strings.Contains(a, `\\`) || strings.Contains(b, `\\`) {
		return compareDecoded(a, b)
	}
	if c := compareNumbers(a, b, i); c != 0 {
		return c
	}
	return int(rank(a[i])) - int(rank(b[i]))
}

// compareDecoded compares elements whose escapes hide their order.
func compareDecoded(a, b string) int {
	x, errA := decodeKey(a)
	y, errB := decodeKey(b)
	if errA != nil || errB != nil {
		return strings.Compare(a, b)
	}
	if c := x.Compare(y); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}

func decodeKey(key string) (fieldpath.PathElement, error) {
	var text string
	if err := json.Unmarshal([]byte(`"`+key+`"`), &text); err != nil {
		return fieldpath.PathElement{}, fmt.Errorf("decode a path element: %w", err)
	}
	return fieldpath.DeserializePathElement(text)
}

// rank puts the end of a string before everything that could go on with it.
func rank(c byte) byte {
	if c == '\\' {
		return 0
	}
	return c
}

// compareNumbers compares the numbers of which i is a part in both, 0 when it is in none.
func compareNumbers(a, b string, i int) int {
	from := i
	for from > 0 && digit(a[from-1]) {
		from--
	}
	if from == 0 || a[from-1] != ':' {
		return 0
	}
	to := func(s string) int {
		end := from
		for end < len(s) && digit(s[end]) {
			end++
		}
		return end
	}
	na, nb := to(a), to(b)
	if na == from || nb == from {
		return 0
	}
	return na - nb // the first digits that differ decide between equally long ones
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

const hexDigits = "0123456789abcdef"

// appendEscaped appends s as it stands inside a JSON string. Letters beyond
// ASCII and what only HTML would have escaped stay as they are.
func appendEscaped(b []byte, s string) []byte {
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(b, s[from:]...)
}

// appendString appends the string value s of a key: JSON, escaped once more for
// inside the string that a path element is.
func appendString(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return appendEscaped(b, string(appendHTMLSafe(nil, s)))
		}
	}
	b = append(b, '\\', '"')
	return append(append(b, s...), '\\', '"')
}

// appendHTMLSafe appends s as JSON with the escapes of encoding/json.
func appendHTMLSafe(b []byte, s string) []byte {
	text, err := json.Marshal(s)
	if err != nil {
		return append(b, `""`...) // a string always has JSON
	}
	return append(b, text...)
}

func appendBool(b []byte, v bool) []byte { return strconv.AppendBool(b, v) }
func appendInt(b []byte, v int64) []byte { return strconv.AppendInt(b, v, 10) }
