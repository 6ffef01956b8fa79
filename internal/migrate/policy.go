package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

const policyFile = "/etc/containers/policy.json"

// requirement is one of the requirements for the images of a scope, in policy.json.
type requirement struct {
	Type           string
	KeyPath        string
	KeyPaths       []string
	SignedIdentity struct{ Type string }
}

// rulesOf is a policy as cribox has it; see package signature.
type rulesOf struct {
	Default map[string]any            `toml:"default"`
	Prefix  map[string]map[string]any `toml:"prefix,omitempty"`
}

// policyFile notes that CRI-O reads another policy than that of the host.
func (o Options) policyFile(p *Plan, s setting, _ string) {
	if !s.unset() {
		p.policyPath = s.text()
	}
}

// policy takes what the policy about signatures requires, as far as cribox knows it. Images whose
// requirement cannot be taken are pulled with a warning in the log, which says that nothing was
// verified: refusing them would stop pods that run today.
func (p *Plan) policy(o Options) error {
	file := policyFile
	if p.policyPath != "" {
		file = p.policyPath
	}
	b, err := readFile(o.path(file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var policy struct {
		Default    []requirement
		Transports map[string]map[string][]requirement
	}
	if err == nil {
		err = json.Unmarshal(b, &policy)
	}
	if err != nil {
		p.add(Missing, file, "", "%v", err)
		return nil
	}
	p.Read = append(p.Read, o.path(file))
	scopes := policy.Transports["docker"]
	if whole, ok := scopes[""]; ok { // of all registries that no other scope fits
		policy.Default = whole
	}
	all := rulesOf{Default: p.requirements(file+": default", policy.Default), Prefix: map[string]map[string]any{}}
	open := all.Default["require"] == "accept"
	for _, scope := range sortedKeys(scopes) {
		from := file + ": " + scope
		if scope == "" {
			continue
		}
		if strings.HasPrefix(scope, "*") || strings.ContainsAny(path.Base(scope), ":@") && strings.Contains(scope, "/") {
			p.add(Missing, from, "", "a rule of cribox is for a registry or the beginning of a repository: write one for each")
			open = false
			continue
		}
		all.Prefix[scope] = p.requirements(from, scopes[scope])
		open = open && all.Prefix[scope]["require"] == "accept"
	}
	if open {
		p.add(Same, file, "", "every image is accepted")
		return nil
	}
	return p.takePolicy(o, file, all)
}

// takePolicy makes the file of a policy. One that the node has is not replaced.
func (p *Plan) takePolicy(o Options, from string, all rulesOf) error {
	file := o.beside("signatures-" + string(p.Source) + ".toml")
	if o.Policy != "" && o.Policy != file {
		p.add(Missing, from, "", "cribox has a policy of its own, %s: compare them yourself", o.Policy)
		return nil
	}
	b, err := toml.Marshal(all)
	if err != nil {
		return err
	}
	head := fmt.Sprintf("# Written by `cribox migrate %s`, from %s.\n", p.Source, from)
	p.Files = append(p.Files, File{Path: file, Content: append([]byte(head), b...), Mode: 0o644})
	p.take(from, "images.signature_policy", file)
	return nil
}

// requirements returns the rule for the requirements of a scope, all of which an image has to meet.
func (p *Plan) requirements(from string, all []requirement) map[string]any {
	if len(all) != 1 {
		return p.notTaken(from, "%d requirements at once", len(all))
	}
	r := all[0]
	switch r.Type {
	case "insecureAcceptAnything":
		return map[string]any{"require": "accept"}
	case "reject":
		return map[string]any{"require": "refuse"}
	case "sigstoreSigned":
	default:
		return p.notTaken(from, "%s: cribox knows signatures of cosign only", r.Type)
	}
	keys := r.KeyPaths
	if r.KeyPath != "" {
		keys = append(keys, r.KeyPath)
	}
	if len(keys) == 0 {
		return p.notTaken(from, "sigstoreSigned without keyPath or keyPaths")
	}
	switch r.SignedIdentity.Type {
	case "", "matchExact", "matchRepoDigestOrExact", "matchRepository":
	default:
		return p.notTaken(from, "sigstoreSigned with the identity %s", r.SignedIdentity.Type)
	}
	return map[string]any{"require": "key", "keys": keys, "match_repository": true}
}

// notTaken lists a requirement that has no counterpart, and returns the rule in its place.
func (p *Plan) notTaken(from, format string, args ...any) map[string]any {
	p.add(Missing, from, "", "%s: until you write a rule, images are pulled and the log has a warning for each "+
		"(docs/signatures.md)", fmt.Sprintf(format, args...))
	return map[string]any{"require": "refuse", "mode": "warn"}
}
