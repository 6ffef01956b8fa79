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

// VerifyRequest asks to verify images, all without names. Username and Password are for the registry
// from which damaged blobs are pulled again.
type VerifyRequest struct {
	Images   []string `json:"images,omitempty"`
	Repair   bool     `json:"repair,omitempty"`
	Username string   `json:"username,omitempty"`
	Password string   `json:"password,omitempty"`
}

// Verified is what was found out about an image.
type Verified struct {
	Image   Image    `json:"image"`
	Sound   bool     `json:"sound"` // nothing is damaged, or not any more
	Damages []Damage `json:"damages,omitempty"`
	Error   string   `json:"error,omitempty"` // why a part was not verified or repaired
}

// Damage is a blob or an unpacked layer that is not what it was when it was pulled.
type Damage struct {
	Data       string   `json:"data"` // "blob sha256:..." or "layer sha256:..."
	What       []string `json:"what"` // at most ten differences
	Repaired   bool     `json:"repaired,omitempty"`
	Containers []string `json:"containers,omitempty"` // they keep the damaged layer
}

// TakeRequest asks to copy an image whose blobs are on this machine, such as one of containerd.
type TakeRequest struct {
	Folder    string   `json:"folder"` // with blobs below ALGORITHM/HEX
	Names     []string `json:"names"`
	Digest    string   `json:"digest"` // of the manifest or index
	MediaType string   `json:"mediaType"`
}

// Pull is a pull in progress.
type Pull struct {
	Image   string    `json:"image"`
	Began   time.Time `json:"began"`
	Waiting int       `json:"waiting"` // requests that wait for it
	Steps   []Step    `json:"steps,omitempty"`
	Doing   []Now     `json:"doing,omitempty"`
}

// Now is a step that runs.
type Now struct {
	Step  string    `json:"step"`
	Since time.Time `json:"since"`
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
	Image    string  `json:"image,omitempty"`    // the image that is being verified
	Steps    []Step  `json:"steps,omitempty"`    // how far that is

	Verified []Verified `json:"verified,omitempty"` // images that were verified since the last line

	Error string `json:"error,omitempty"`
	Done  bool   `json:"done,omitempty"` // this is the last line
}

func imageOf(i imageservice.Image) Image {
	return Image{ID: i.ID, Tags: i.RepoTags, Digests: i.RepoDigests, Size: i.Size, Pinned: i.Pinned, InUse: i.InUse}
}

func pullOf(p imageservice.PullStatus) Pull {
	pull := Pull{Image: p.Ref, Began: p.Began, Waiting: p.Waiting}
	pull.Steps = stepsOf(p.Items)
	for _, d := range p.Doing {
		pull.Doing = append(pull.Doing, Now{d.Name, d.Began})
	}
	return pull
}

func stepsOf(all []imageservice.Progress) (steps []Step) {
	for _, s := range all {
		steps = append(steps, Step{Name: s.Name, Done: s.Done, Total: s.Total, Finished: s.Finished})
	}
	return steps
}

func verifiedOf(v imageservice.Verified) Verified {
	one := Verified{Image: imageOf(v.Image), Sound: v.Sound()}
	for _, d := range v.Damages {
		one.Damages = append(one.Damages, Damage{Data: d.Data, What: d.What, Repaired: d.Repaired, Containers: d.Users})
	}
	if v.Err != nil {
		one.Error = v.Err.Error()
	}
	return one
}
