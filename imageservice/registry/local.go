package registry

import (
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/cribox/cribox/imageservice/imageref"
	"github.com/cribox/cribox/imageservice/progress"
)

// localPatience is how long a local repository may take to answer. It waits for a disk at most.
const localPatience = 5 * time.Minute

// Local returns a repository that is in this process: transport answers its requests. The name is
// what errors call it, in the place of a host.
func Local(t imageref.Target, name string, transport http.RoundTripper, prog *progress.Clock) *Repository {
	h := &Host{Own: true, local: true, RegistryHost: docker.RegistryHost{
		Client: &http.Client{Transport: transport}, Scheme: "http", Host: name, Path: "/v2", Header: http.Header{},
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}}
	r := &Repository{local: true, repo: t, hosts: []*Host{h}, prog: prog, troubled: &troubledHosts{}, stall: localPatience,
		idle: localPatience}
	h.name = h.origin()
	h.auth = newAuthorizer(h.origin(), r.scope(), Credentials{}, h.Client, h.Header, r.settings)
	return r
}

// IsLocal reports whether the repository is in this process.
func (r *Repository) IsLocal() bool { return r.local }
