package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2/types"
	"go.yaml.in/yaml/v2"
	"k8s.io/kubernetes/test/conformance/testdata"
)

// result is the newest outcome of a spec.
type result struct {
	State   string    `json:"state"`
	Message string    `json:"message,omitempty"`
	Time    time.Time `json:"time"`
	Commit  string    `json:"commit"`
	Seconds float64   `json:"seconds"`
}

// results holds those of every conformance spec, by name; the zero result: never run.
type results map[string]result

func (r *runner) resultsFile() string { return filepath.Join(r.cache, "results.json") }

// results reads what is kept of the specs that the suite has.
func (r *runner) results() (results, error) {
	names, err := specs()
	if err != nil {
		return nil, err
	}
	kept := results{}
	b, err := os.ReadFile(r.resultsFile())
	if err == nil {
		err = json.Unmarshal(b, &kept)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the results: %w", err)
	}
	all := results{}
	for _, n := range names {
		all[n] = kept[n]
	}
	return all, nil
}

// specs are the names of the conformance specs, as the suite lists them.
func specs() ([]string, error) {
	b, err := testdata.GetConformanceTestdataFS().EmbeddedFS.ReadFile("conformance.yaml")
	if err != nil {
		return nil, err
	}
	var list []struct {
		Codename string `yaml:"codename"`
	}
	if err := yaml.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	var names []string
	for _, l := range list {
		names = append(names, l.Codename)
	}
	return names, nil
}

// keepResults adds a report to what is kept and prints what failed.
func (r *runner) keepResults(ctx context.Context, file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read the report: %w", err)
	}
	var reports []types.Report
	if err := json.Unmarshal(b, &reports); err != nil {
		return 0, fmt.Errorf("read the report: %w", err)
	}
	all, err := r.results()
	if err != nil {
		return 0, err
	}
	id, n, passed := commit(ctx, r.root), 0, 0
	var failures []string
	for _, report := range reports {
		for _, s := range report.SpecReports {
			name := strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
			if s.LeafNodeType != types.NodeTypeIt || s.State.Is(types.SpecStateSkipped) && s.RunTime == 0 {
				continue
			}
			if _, known := all[name]; !known {
				fmt.Println("not in the list of conformance specs:", name)
				continue
			}
			n++
			all[name] = result{State: s.State.String(), Message: short(s.FailureMessage()), Time: time.Now().UTC().Truncate(time.Second), Commit: id, Seconds: s.RunTime.Seconds()}
			if s.State.Is(types.SpecStatePassed) {
				passed++
			} else {
				failures = append(failures, fmt.Sprintf("%s: %s\n    %s (%s:%d)", s.State, name, short(s.FailureMessage()), filepath.Base(s.FailureLocation().FileName), s.FailureLocation().LineNumber))
			}
		}
	}
	slices.Sort(failures)
	for _, f := range failures {
		fmt.Println(f)
	}
	fmt.Printf("%d of %d passed\n", passed, n)
	if b, err = json.MarshalIndent(all, "", " "); err != nil {
		return n, err
	}
	return n, os.WriteFile(r.resultsFile(), b, 0o644)
}

// short is the last part of a failure's message, which says most.
func short(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 600 {
		s = s[:300] + " ... " + s[len(s)-300:]
	}
	return s
}

var areaOf = regexp.MustCompile(`^\[([a-z-]+)\] (?:\[[^\]]*\] ?)*([A-Za-z ()/]*)`)

// area is the group and the first words of a spec's name.
func area(name string) (sig, part string) {
	m := areaOf.FindStringSubmatch(name)
	if m == nil {
		return "other", name
	}
	part, _, _ = strings.Cut(m[2], " should")
	return m[1], strings.TrimSpace(part)
}

type count struct {
	passed, failed, never int
	newest                time.Time
	commit                string
}

func (c *count) add(r result) {
	switch r.State {
	case "passed":
		c.passed++
	case "":
		c.never++
	default:
		c.failed++
	}
	if r.Time.After(c.newest) {
		c.newest, c.commit = r.Time, r.Commit
	}
}

func (all results) count() (bySig map[string]*count, total count) {
	bySig = map[string]*count{}
	for name, r := range all {
		sig, _ := area(name)
		if bySig[sig] == nil {
			bySig[sig] = &count{}
		}
		bySig[sig].add(r)
		total.add(r)
	}
	return bySig, total
}

// areas is the summary for the terminal.
func (all results) areas() string {
	var b strings.Builder
	by, total := all.count()
	for _, sig := range slices.Sorted(maps.Keys(by)) {
		c := by[sig]
		fmt.Fprintf(&b, "%-22s %3d passed %3d failed %3d not run yet\n", sig, c.passed, c.failed, c.never)
	}
	fmt.Fprintf(&b, "%-22s %3d passed %3d failed %3d not run yet\n", "all", total.passed, total.failed, total.never)
	return b.String()
}

// page is docs/conformance.md.
func (all results) page() string {
	var b strings.Builder
	by, total := all.count()
	fmt.Fprintf(&b, "# Conformance\n\nKubernetes' own conformance suite (%s, %d specs), run against the real binary on two nodes by `make conformance`.\nEach spec counts with its newest result, which may be of different runs (before fe9ff9d on one node); the commit is that of the area's newest run.\n\n", version, len(all))
	b.WriteString("| area | passed | failed | not run yet | of | newest run | commit |\n|---|---|---|---|---|---|---|\n")
	row := func(name string, c *count) {
		at := "-"
		if !c.newest.IsZero() {
			at = c.newest.Format(time.DateOnly)
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %s | %s |\n", name, c.passed, c.failed, c.never, c.passed+c.failed+c.never, at, cmp.Or(c.commit, "-"))
	}
	for _, sig := range slices.Sorted(maps.Keys(by)) {
		row(sig, by[sig])
	}
	row("**all**", &total)
	b.WriteString(`
The images that the specs run are made on the machine (` + "`test/conformance/images.sh`" + `), under the names that the suite asks for: its own Go
programs and busybox are built from source; nginx and the name resolution tools are Debian's in place of Alpine's; and a small name server
stands in for CoreDNS in the one spec that starts it.

    make conformance                          # everything, as root: more than an hour
    make conformance FOCUS='ConfigMap|Secrets' # the specs whose name matches
`)
	var failed []string
	for name, r := range all {
		if r.State != "" && r.State != "passed" {
			failed = append(failed, "- "+name+" - "+r.Message)
		}
	}
	if len(failed) > 0 {
		slices.Sort(failed)
		b.WriteString("\n## What fails\n\n" + strings.Join(failed, "\n") + "\n")
	}
	return b.String()
}
