// Package keyring finds the credentials that the node itself has for registries. It sends nothing
// to a registry, and keeps nothing in memory.
//
// They are in a file in the format of docker's config.json:
//
//	{
//	  "auths": {
//	    "registry.example/team": {"auth": "base64 of user:password"},
//	    "*.mirror.example":      {"username": "node", "password": "..."}
//	  },
//	  "credHelpers": {"123.dkr.ecr.eu-west-1.amazonaws.com": "ecr-login"},
//	  "credsStore": "pass"
//	}
//
// A key is a host, which may contain wildcards as a kubelet's may, and the beginning of a repository
// path, which ends where a path element ends. The longest path wins, then a host without wildcards.
// Of equal keys the helper wins.
package keyring

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/cribox/cribox/imageservice/imageref"
)

// maxFile is the most bytes of a file of credentials.
const maxFile = 1 << 20

// Keyring finds credentials in a file and through the helpers that it names.
type Keyring struct {
	file    string // "" for none
	helpers string // the folder of the helpers; "" means PATH
}

// New returns a keyring that reads the file each time it is asked. The file may be missing. Helpers
// are the programs docker-credential-NAME in the folder helpers, or in PATH if that is "".
func New(file, helpers string) *Keyring { return &Keyring{file: file, helpers: helpers} }

// Entry is what the keyring has for a repository.
type Entry struct {
	Username, Password string
	Auth               string // base64 of "user:password"
	IdentityToken      string
	RegistryToken      string
	From               string // where it was found, without a secret
}

// entry is one entry of auths.
type entry struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// document is a config.json of docker. Other keys of docker are ignored, as every reader of the
// format does.
type document struct {
	Auths   map[string]entry  `json:"auths"`
	Helpers map[string]string `json:"credHelpers"`
	Store   string            `json:"credsStore"`
}

// Find returns the credentials for a repository, given as its host and its path there. It returns
// nil if the node has none. Errors name the file or the helper, and contain no secret.
func (k *Keyring) Find(ctx context.Context, host, repository string) (*Entry, error) {
	if k == nil || k.file == "" {
		return nil, nil
	}
	doc, err := k.read()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", k.file, err)
	}
	helper, byHelper := best(doc.Helpers, host, repository)
	key, byFile := best(doc.Auths, host, repository)
	switch {
	case byHelper && (!byFile || !better(key, helper)):
		return k.ask(ctx, doc.Helpers[helper], helper)
	case byFile && doc.Auths[key] != entry{}:
		e := doc.Auths[key]
		return &Entry{Username: e.Username, Password: e.Password, Auth: e.Auth, IdentityToken: e.IdentityToken,
			RegistryToken: e.RegistryToken, From: fmt.Sprintf("entry %q of %s", key, k.file)}, nil
	case doc.Store != "":
		return k.ask(ctx, doc.Store, serverOf(host))
	}
	return nil, nil
}

func (k *Keyring) read() (document, error) {
	f, err := os.Open(k.file)
	if errors.Is(err, fs.ErrNotExist) {
		return document{}, nil
	}
	if err != nil {
		return document{}, errors.Unwrap(err) // without the path, which the caller adds
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return document{}, err
	}
	if len(b) > maxFile {
		return document{}, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return parse(b)
}

// parse decodes a file of credentials. Errors of the JSON library may quote a value, so they are
// not passed on.
func parse(b []byte) (document, error) {
	var doc document
	if len(bytes.TrimSpace(b)) == 0 {
		return doc, nil
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return doc, fmt.Errorf("it is not JSON (at byte %d)", syntax.Offset)
		}
		return doc, errors.New("it is not in the format of docker's config.json")
	}
	if doc.Auths == nil && doc.Helpers == nil && doc.Store == "" {
		var old map[string]entry
		if json.Unmarshal(b, &old) == nil && len(old) > 0 {
			return doc, errors.New(`it is in the old format of .dockercfg: put its entries below "auths"`)
		}
	}
	return doc, nil
}

// best returns the key of entries that fits a repository best.
func best[E any](entries map[string]E, host, repository string) (found string, ok bool) {
	for key := range entries {
		if matches(key, host, repository) && (!ok || better(key, found)) {
			found, ok = key, true
		}
	}
	return found, ok
}

// better reports whether key a says more than key b, which both fit a repository.
func better(a, b string) bool {
	hostA, pathA := split(a)
	hostB, pathB := split(b)
	if len(pathA) != len(pathB) {
		return len(pathA) > len(pathB)
	}
	if wildA, wildB := strings.ContainsAny(hostA, "*?["), strings.ContainsAny(hostB, "*?["); wildA != wildB {
		return wildB
	}
	if len(hostA) != len(hostB) {
		return len(hostA) > len(hostB)
	}
	return a < b
}

// matches reports whether a key fits a repository. A wildcard stands for characters of one label of
// the host name, never for a dot or a port.
func matches(key, host, repository string) bool {
	pattern, prefix := split(key)
	if prefix != "" && repository != prefix && !strings.HasPrefix(repository, prefix+"/") {
		return false
	}
	patternName, patternPort := cutPort(pattern)
	name, port := cutPort(imageref.Registry(host))
	if strings.HasPrefix(patternName, "[") { // an IPv6 address
		return pattern == imageref.Registry(host)
	}
	labels, patterns := strings.Split(name, "."), strings.Split(patternName, ".")
	if patternPort != port || len(labels) != len(patterns) {
		return false
	}
	for i, p := range patterns {
		if ok, err := path.Match(p, labels[i]); !ok || err != nil {
			return false
		}
	}
	return true
}

// split returns the host and the path of a key, which may be a URL, as docker login writes it
// ("https://index.docker.io/v1/").
func split(key string) (host, prefix string) {
	scheme, rest, ok := strings.Cut(key, "://")
	if !ok {
		scheme, rest = "https", key
	}
	host, prefix, _ = strings.Cut(rest, "/")
	if strings.EqualFold(scheme, "http") {
		host = strings.TrimSuffix(host, ":80")
	}
	prefix = strings.Trim(prefix, "/")
	if version, after, _ := strings.Cut(prefix, "/"); version == "v1" || version == "v2" {
		prefix = after
	}
	return imageref.Registry(host), prefix
}

// cutPort splits a host into its name and its port. An IPv6 address stays in its brackets.
func cutPort(host string) (name, port string) {
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		return host[:i], host[i+1:]
	}
	return host, ""
}

// serverOf returns the name under which docker login stores the credentials for a host.
func serverOf(host string) string {
	if host = imageref.Registry(host); host == "docker.io" {
		return "https://index.docker.io/v1/"
	}
	return host
}
