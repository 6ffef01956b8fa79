package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cribox/cribox/config"
)

// ImageOptions are the flags and arguments of the commands about images.
type ImageOptions struct {
	Call
	Name          string // of a loaded image
	Output        string // file for an archive
	DryRun        bool
	Repair        bool
	Username      string // at the registry
	PasswordStdin bool   // the password is the first line of the input
}

// ImageRun is what a command about images does.
type ImageRun func(context.Context, config.Config, ImageOptions, io.Writer) error

// ImageCommands are what the commands about images do.
type ImageCommands struct{ List, Inspect, Pull, Load, Save, Pin, Unpin, Remove, Prune, Pulls, Verify ImageRun }

func imageCommand(run ImageCommands) *cobra.Command {
	image := &cobra.Command{
		Use:   "image",
		Short: "look at the images of the node, bring more, and remove them",
		Long: `Look at the images of the running daemon, bring more of them, and remove them. All of it goes
through the daemon, which must run; only root may do it.`,
		Example: `  cribox image ls
  cribox image pull docker.io/library/nginx:1.29
  docker save app:1 | ssh node cribox image load`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	image.AddCommand(imageList(run.List), imageInspect(run.Inspect), imagePull(run.Pull), imageLoad(run.Load),
		imageSave(run.Save), imagePin(run.Pin), imageUnpin(run.Unpin), imageRemove(run.Remove), imagePrune(run.Prune),
		imagePulls(run.Pulls), imageVerify(run.Verify))
	return image
}

func imageList(run ImageRun) *cobra.Command {
	c, _ := withCall(run, noArguments, &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "list the images of the node",
		Example: `  cribox image ls
  cribox image ls --json | jq -r '.[].tags[]'`,
	})
	return c
}

func imageInspect(run ImageRun) *cobra.Command {
	c, _ := withCall(run, one("image"), &cobra.Command{
		Use:     "inspect IMAGE",
		Short:   "print an image and its configuration, as JSON",
		Example: `  cribox image inspect docker.io/library/nginx:1.29`,
	})
	return c
}

func imagePull(run ImageRun) *cobra.Command {
	c, o := withCall(run, one("image"), &cobra.Command{
		Use:   "pull IMAGE",
		Short: "pull an image from its registry, and show how far it is",
		Long: `Pull an image with the daemon's configuration of registries and mirrors, as for a pod. A terminal
shows a bar for each layer; elsewhere there is a line for each that is finished.

When the command is interrupted, the pull ends too, unless a pod waits for it. The next one
continues where it was.`,
		Example: `  cribox image pull docker.io/library/nginx:1.29
  pass registry | cribox image pull --username me --password-stdin registry.example/app:1`,
	})
	withCredentials(c, o)
	return c
}

func withCredentials(c *cobra.Command, o *ImageOptions) {
	c.Flags().StringVar(&o.Username, "username", "", "`NAME` of a user of the registry")
	c.Flags().BoolVar(&o.PasswordStdin, "password-stdin", false, "read the user's password from the standard input")
}

func imageLoad(run ImageRun) *cobra.Command {
	c, o := withCall(run, atMostOneFile, &cobra.Command{
		Use:   "load [FILE]",
		Short: "load the images of an archive, without a registry",
		Long: `Load the images of a tar archive: one that "docker save" or "podman save" has written, or one in
the OCI layout. It may be compressed with gzip or zstd. Without a file, or with -, it is read
from the standard input. The images are verified like those of a registry.`,
		Example: `  cribox image load app.tar.zst
  docker save app:1 | ssh node cribox image load
  skopeo copy docker://registry.example/app:1 oci-archive:app.tar &&
    cribox image load --name registry.example/app:1 app.tar`,
	})
	c.Flags().StringVar(&o.Name, "name", "", "`NAME` for the image, in the place of those in the archive")
	c.ValidArgsFunction = nil // files
	return c
}

func imageRemove(run ImageRun) *cobra.Command {
	c, _ := withCall(run, someImages, &cobra.Command{
		Use:     "rm IMAGE...",
		Aliases: []string{"remove"},
		Short:   "remove images with all their names",
		Long: `Remove images with all their names, and all data that no other image needs. An image that a
container has been made of stays, and the error names the container.`,
		Example: `  cribox image rm docker.io/library/nginx:1.29`,
	})
	return c
}

func imageSave(run ImageRun) *cobra.Command {
	c, o := withCall(run, someImages, &cobra.Command{
		Use:   "save IMAGE...",
		Short: "write images into an archive",
		Long: `Write images into a tar archive in the OCI layout, which "cribox image load", docker, podman and
skopeo read. It has the layers as they were pulled, for this machine's platform alone. Each is
hashed again on the way; a damaged one is an error. An ID stands for all tags of its image.`,
		Example: `  cribox image save app:1 -o app.tar
  cribox image save app:1 | ssh other-node cribox image load`,
	})
	c.Flags().StringVarP(&o.Output, "output", "o", "", "`FILE` for the archive, in the place of the standard output")
	return c
}

func imagePin(run ImageRun) *cobra.Command {
	c, _ := withCall(run, someImages, &cobra.Command{
		Use:   "pin IMAGE...",
		Short: "keep images when the disk is full",
		Long: `Pin images by their names: a kubelet then does not remove them when the disk is full. The image
need not be here yet, and the pin outlives the daemon. It is in addition to images.pinned of the
configuration.`,
		Example: `  cribox image pin registry.example/app:1`,
	})
	return c
}

func imageUnpin(run ImageRun) *cobra.Command {
	c, _ := withCall(run, someImages, &cobra.Command{
		Use:     "unpin IMAGE...",
		Short:   "undo pin",
		Example: `  cribox image unpin registry.example/app:1`,
	})
	return c
}

func imagePrune(run ImageRun) *cobra.Command {
	c, o := withCall(run, noArguments, &cobra.Command{
		Use:   "prune",
		Short: "remove the images that no container needs",
		Long: `Remove every image that no container was made of, stopped ones included, and that is not pinned.
A kubelet does this by itself when the disk is full.`,
		Example: `  cribox image prune --dry-run
  cribox image prune`,
	})
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "only print what would be removed")
	return c
}

func imagePulls(run ImageRun) *cobra.Command {
	c, _ := withCall(run, noArguments, &cobra.Command{
		Use:     "pulls",
		Short:   "list the pulls in progress, with what each is doing",
		Example: `  cribox image pulls`,
	})
	return c
}

func imageVerify(run ImageRun) *cobra.Command {
	c, o := withCall(run, cobra.ArbitraryArgs, &cobra.Command{
		Use:   "verify [IMAGE...]",
		Short: "look for damaged images, and repair them",
		Long: `Read all data of these images, or of all, from the disk: hash each blob again, and compare each
unpacked layer with what its blob unpacks to. Print what is damaged; the exit code is then 1.
A layer is unpacked a second time for this, so the disk needs room for the largest one.

With --repair, damaged blobs are pulled again and damaged layers are replaced; the exit code is
0 if nothing damaged is left. Containers go on meanwhile. Those that have a damaged layer keep
it until they are made again; they are listed.

It reads everything that the images have on the disk: expect some time, and slow disks.`,
		Example: `  cribox image verify
  cribox image verify --repair docker.io/library/nginx:1.29`,
	})
	c.Flags().BoolVar(&o.Repair, "repair", false, "set right what is damaged")
	withCredentials(c, o)
	return c
}

func someImages(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return nil
	}
	return fmt.Errorf("%s takes at least one image; `%s --help` has examples", c.Name(), c.CommandPath())
}

func atMostOneFile(c *cobra.Command, args []string) error {
	if len(args) <= 1 {
		return nil
	}
	return fmt.Errorf("%s takes one archive, not %d; `%s --help` has examples", c.Name(), len(args), c.CommandPath())
}
