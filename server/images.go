package server

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cribox/cribox/imageservice"
	"github.com/cribox/cribox/sandbox"
)

// PullImage pulls an image. Images are the same for every handler, but an unknown handler (CRI
// ImageSpec.runtime_handler) is an error.
func (s *imageService) PullImage(ctx context.Context,
	req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := s.pods().CheckHandler(req.GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	var auth *imageservice.Auth
	if a := req.GetAuth(); a != nil {
		auth = &imageservice.Auth{Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(),
			ServerAddress: a.GetServerAddress(),
			IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken()}
	}
	img, err := s.images().Pull(ctx, req.GetImage().GetImage(), auth)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

// ImageStatus returns an empty response for an unknown image, as the CRI requires. An invalid
// reference is an error.
func (s *imageService) ImageStatus(_ context.Context,
	req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	img, err := s.images().Lookup(req.GetImage().GetImage())
	if errors.Is(err, errdefs.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	r := &runtimeapi.ImageStatusResponse{Image: imageMessage(img)}
	if req.GetVerbose() {
		if r.Info, err = info(map[string]any{"info": map[string]any{"imageSpec": img.Config}}); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// ListImages returns every image, or with a filter the one that the filter names.
func (s *imageService) ListImages(_ context.Context,
	req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	items, err := s.imageItems(req.GetFilter())
	return &runtimeapi.ListImagesResponse{Images: items}, err
}

func (s *imageService) StreamImages(req *runtimeapi.StreamImagesRequest,
	to grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	items, err := s.imageItems(req.GetFilter())
	if err != nil {
		return err
	}
	return sendPieces(s.Server, to, items, func(items []*runtimeapi.Image) *runtimeapi.StreamImagesResponse {
		return &runtimeapi.StreamImagesResponse{Images: items}
	})
}

func (s *imageService) imageItems(f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	name := f.GetImage().GetImage()
	if name == "" {
		var items []*runtimeapi.Image
		for _, img := range s.images().List() {
			items = append(items, imageMessage(img))
		}
		return items, nil
	}
	img, err := s.images().Lookup(name)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []*runtimeapi.Image{imageMessage(img)}, nil
}

func (s *imageService) RemoveImage(ctx context.Context,
	req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return &runtimeapi.RemoveImageResponse{}, s.images().Remove(ctx, req.GetImage().GetImage())
}

// ImageFsInfo reports one filesystem, because images and writable layers are below the same root.
func (s *imageService) ImageFsInfo(ctx context.Context,
	_ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	u, err := s.images().Usage(ctx)
	if err != nil {
		return nil, err
	}
	fs := &runtimeapi.FilesystemUsage{Timestamp: u.At.UnixNano(),
		FsId:      &runtimeapi.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes: number(&u.Bytes), InodesUsed: number(&u.Inodes)}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{fs},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{fs}}, nil
}

// imageMessage returns the CRI message of an image. A numeric user of the image goes into Uid, so
// that the kubelet can check runAsNonRoot, any other into Username. The spec has no annotations:
// those of an ImageSpec belong to one request, and several requests may have pulled the image.
func imageMessage(img imageservice.Image) *runtimeapi.Image {
	r := &runtimeapi.Image{Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: uint64(img.Size),
		Pinned: img.Pinned,
		Spec:   &runtimeapi.ImageSpec{Image: img.ID}}
	uid, name := sandbox.ImageUser(img.Config.Config.User)
	if uid != nil {
		r.Uid = &runtimeapi.Int64Value{Value: int64(*uid)}
	}
	r.Username = name
	return r
}
