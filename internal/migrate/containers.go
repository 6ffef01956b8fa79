package migrate

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

const registriesConf = "/etc/containers/registries.conf"

// insecure says that a host may have a wrong certificate, or none.
func (r *registries) insecure(host string) {
	t := r.servers[host]
	t.skipVerify, t.plain = true, true // tried with TLS first
	r.servers[host] = t
}

// containers reads registries.conf and the files of its folder, in which an entry for the same prefix
// replaces an earlier one.
func (r *registries) containers() error {
	file := r.options.path(registriesConf)
	dropIns, err := filesIn(file + ".d")
	if err != nil {
		return err
	}
	merged, entries := map[string]any{}, []map[string]any{}
	for _, path := range append([]string{file}, dropIns...) {
		if filepath.Ext(path) != ".conf" {
			continue
		}
		one, err := readTOML(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		r.plan.Read = append(r.plan.Read, path)
		for _, e := range tablesOf(one["registry"]) {
			entries = slices.DeleteFunc(entries, func(old map[string]any) bool { return prefixOf(old) == prefixOf(e) })
			entries = append(entries, e)
		}
		delete(one, "registry")
		merge(merged, one, false)
	}
	for _, e := range entries {
		r.entry(e)
	}
	r.settings(merged)
	return nil
}

func tablesOf(v any) (all []map[string]any) {
	switch list := v.(type) {
	case []map[string]any:
		return list
	case []any:
		for _, one := range list {
			if t, ok := one.(map[string]any); ok {
				all = append(all, t)
			}
		}
	}
	return all
}

func prefixOf(entry map[string]any) string {
	prefix, _ := entry["prefix"].(string)
	if prefix == "" {
		prefix, _ = entry["location"].(string)
	}
	return prefix
}

// entry takes one [[registry]].
func (r *registries) entry(e map[string]any) {
	prefix := prefixOf(e)
	from := registriesConf + ": " + prefix
	location, _ := e["location"].(string)
	insecure, _ := e["insecure"].(bool)
	blocked, _ := e["blocked"].(bool)
	byDigest, _ := e["mirror-by-digest-only"].(bool)
	mirrors := tablesOf(e["mirror"])
	switch {
	case strings.ContainsAny(prefix, "/*"):
		r.plan.add(Missing, from, "", "mirrors are for whole registries, and not for a part of one or a pattern of hosts")
		return
	case blocked:
		r.plan.add(Missing, from+", blocked", "", "a registry cannot be blocked: use an admission policy of the cluster")
		return
	}
	if insecure {
		r.insecure(prefix)
	}
	r.mirrors[prefix] = nil
	for _, m := range mirrors {
		where, _ := m["location"].(string)
		plain, _ := m["insecure"].(bool)
		from, _ := m["pull-from-mirror"].(string)
		one := mirror{url: r.base(where, plain)}
		if byDigest || from == "digest-only" {
			one.pull = `["pull"]`
		}
		r.mirrors[prefix] = append(r.mirrors[prefix], one)
	}
	if location != "" && location != prefix {
		r.mirrors[prefix] = append(r.mirrors[prefix], mirror{url: r.base(location, insecure)})
		r.plan.add(Missing, from, "", "the registry itself is asked too, when %s has not the image", location)
	}
	r.plan.add(Taken, from, "registry "+prefix, "%d mirrors", len(r.mirrors[prefix]))
}

// base returns the URL below which a location has its repositories, and notes how its host is
// spoken to.
func (r *registries) base(location string, insecure bool) string {
	host, path, _ := strings.Cut(strings.TrimSuffix(location, "/"), "/")
	scheme := "https://"
	if insecure {
		r.insecure(host)
		scheme = "http://" // tried with TLS first
	}
	if path == "" {
		return scheme + host
	}
	return scheme + host + "/v2/" + path
}

// settings takes the rest of registries.conf.
func (r *registries) settings(merged map[string]any) {
	p := r.plan
	if aliases, _ := merged["aliases"].(map[string]any); len(aliases) > 0 {
		p.add(Missing, "aliases of images", "", "%d names without a registry mean docker.io's: write the registry into pods",
			len(aliases))
	}
	delete(merged, "aliases")
	rules := []rule{
		{"unqualified-search-registries", sameIf("[docker.io]", "a name without a registry is docker.io's",
			"a name without a registry is docker.io's: write the registry into pods")},
		{"registries.search.registries", missing("a name without a registry is docker.io's: write the registry into pods")},
		{"registries.insecure.registries", func(p *Plan, s setting, _ string) {
			for _, host := range s.list() {
				r.insecure(host)
				p.add(Taken, "registries.insecure: "+host, "registry "+host, "")
			}
		}},
		{"registries.block.registries", missing("a registry cannot be blocked: use an admission policy of the cluster")},
		{"short-name-mode", same("a name without a registry is docker.io's")},
		{"credential-helpers", missing("give credentials to pods (imagePullSecrets) or to the kubelet")},
	}
	for _, s := range settingsOf(merged) {
		p.apply(rules, s)
	}
}
