package admin

import (
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cribox/cribox/imageservice"
)

// Image is an image of the node.
type Image struct {
	ID      string         `json:"id"`
	Tags    []string       `json:"tags,omitempty"`
	Digests []string       `json:"digests,omitempty"`
	Size    int64          `json:"size"` // bytes of its blobs, compressed as they were pulled
	Pinned  bool           `json:"pinned,omitempty"`
	InUse   bool           `json:"inUse,omitempty"`  // a container was made of it
	Config  *ocispec.Image `json:"config,omitempty"` // of one image that was asked for
}

// PullRequest asks for an image. Username and Password are for its registry.
type PullRequest struct {
	Image    string `json:"image"`
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
}

// Pull is a pull in progress.
type Pull struct {
	Image   string    `json:"image"`
	Began   time.Time `json:"began"`
	Waiting int       `json:"waiting"` // requests that wait for it
	Steps   []Step    `json:"steps,omitempty"`
}

// Step is a part of a pull: the download of a layer, or unpacking it.
type Step struct {
	Name     string `json:"name"`
	Done     int64  `json:"done"`            // bytes
	Total    int64  `json:"total,omitempty"` // bytes; 0 where nobody knows
	Finished bool   `json:"finished,omitempty"`
}

// Event is one line of a long answer.
type Event struct {
	Pulls    []Pull  `json:"pulls,omitempty"`    // how far it is
	Received int64   `json:"received,omitempty"` // bytes of an archive so far
	Images   []Image `json:"images,omitempty"`   // the result
	Error    string  `json:"error,omitempty"`
	Done     bool    `json:"done,omitempty"` // this is the last line
}

func imageOf(i imageservice.Image) Image {
	return Image{ID: i.ID, Tags: i.RepoTags, Digests: i.RepoDigests, Size: i.Size, Pinned: i.Pinned, InUse: i.InUse}
}

func pullOf(p imageservice.PullStatus) Pull {
	pull := Pull{Image: p.Ref, Began: p.Began, Waiting: p.Waiting}
	for _, s := range p.Items {
		pull.Steps = append(pull.Steps, Step{Name: s.Name, Done: s.Done, Total: s.Total, Finished: s.Finished})
	}
	return pull
}
