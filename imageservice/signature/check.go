package signature

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// Check looks for what would refuse pulls whatever is signed: a policy, a key or a trusted root that
// cannot be read, and a missing program for signatures without a key; and for a policy that others
// than its owner can write.
func (p *Policy) Check() (problems []error) {
	b, err := os.ReadFile(p.file)
	if err != nil {
		return []error{fmt.Errorf("signature policy: %w", err)}
	}
	all, err := parse(b)
	if err != nil {
		return []error{fmt.Errorf("signature policy %s: %w", p.file, err)}
	}
	if info, err := os.Stat(p.file); err == nil && info.Mode().Perm()&0o022 != 0 {
		problems = append(problems, fmt.Errorf("signature policy %s has mode %04o: others than its owner can change it",
			p.file, info.Mode().Perm()))
	}
	byProgram := false
	rules := []Rule{all.Default}
	for _, prefix := range slices.Sorted(maps.Keys(all.Prefix)) {
		rules = append(rules, all.Prefix[prefix])
	}
	for _, r := range rules {
		if err := r.load(filepath.Dir(p.file)); err != nil {
			problems = append(problems, fmt.Errorf("signature policy %s: %s: %w", p.file, r.name, err))
		}
		byProgram = byProgram || r.Require == keyless
	}
	if byProgram {
		if err := checkVerifier(all.Verifier); err != nil {
			problems = append(problems, fmt.Errorf("%w: %w", ErrVerifier, err))
		}
	}
	return problems
}

// checkVerifier checks that nobody, who runs the program, may.
func checkVerifier(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o001 == 0 {
		return fmt.Errorf("%s: the user nobody may not execute it", path)
	}
	return nil
}
