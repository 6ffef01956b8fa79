package migrate

import (
	"encoding/json"
	"path/filepath"
)

// auth notes one part of the credentials of a host.
func (r *registries) auth(_ *Plan, s setting, host string) {
	if s.unset() {
		return
	}
	if r.secrets[host] == nil {
		r.secrets[host] = map[string]string{}
	}
	r.secrets[host][s.path[len(s.path)-1]] = s.text()
}

// credentials makes the file of credentials, in the format of docker's config.json, whose names of
// the parts are containerd's. A file that the node has is not replaced.
func (r *registries) credentials() error {
	if len(r.secrets) == 0 {
		return nil
	}
	file := r.options.beside("credentials-" + string(r.plan.Source) + ".json")
	if r.options.Credentials != file && exists(r.options.Credentials) {
		for _, host := range sortedKeys(r.secrets) {
			r.plan.add(Missing, "credentials of "+host, "", "add them to %s, which cribox reads already", r.options.Credentials)
		}
		return nil
	}
	b, err := json.MarshalIndent(map[string]any{"auths": r.secrets}, "", "  ")
	if err != nil {
		return err
	}
	r.plan.Files = append(r.plan.Files, File{Path: file, Content: append(b, '\n'), Mode: 0o600})
	for _, host := range sortedKeys(r.secrets) {
		r.plan.take("credentials of "+host, "images.credentials", file)
	}
	return nil
}

// authFile takes CRI-O's file of credentials, which has docker's format, as it lies there.
func (o Options) authFile(p *Plan, s setting, _ string) {
	switch {
	case s.unset():
	case o.Credentials != s.text() && exists(o.Credentials):
		p.add(Missing, s.String(), "", "add its entries to %s, which cribox reads already", o.Credentials)
	default:
		p.take(s.String(), "images.credentials", s.text())
	}
}

// beside is a file beside the configuration of cribox.
func (o Options) beside(name string) string { return filepath.Join(filepath.Dir(o.DropIns), name) }
