package layers

import "github.com/cribox/cribox/imageservice/overlay"

// Limits caps what a registry can make us store (I13). Zero fields take the default.
type Limits struct {
	LayerBytes int64 // uncompressed bytes of one layer's tar; default 64 GiB
	ImageBytes int64 // bytes of all layers of an image, compressed, uncompressed and as files, each by itself; default 256 GiB
	Entries    int64 // tar entries of one layer, directories that had to be made up included; default 5,000,000
	Ratio      int64 // uncompressed bytes per compressed byte of one layer, beyond which Reserve counts; default 200
	RatioFloor int64 // uncompressed bytes up to which the ratio does not matter; default 256 MiB
	Reserve    int   // percent of the disk that a layer beyond Ratio must leave free; default 0
	Layers     int   // layers of one image; default and most 500, which is what overlayfs stacks
}

const (
	maxLooks  = 16 << 20  // into the layers of an image, for directories that the ones above them made up
	maxName   = 4096      // bytes of a path in a layer
	maxNames  = 128 << 20 // bytes of names and times of directories, see caps
	maxWindow = 128 << 20 // bytes of a zstd window, the most that zstd makes without --ultra --long
)

func (l Limits) WithDefaults() Limits {
	def := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.LayerBytes, 64<<30)
	def(&l.ImageBytes, 256<<30)
	def(&l.Entries, 5_000_000)
	def(&l.Ratio, 200)
	def(&l.RatioFloor, 256<<20)
	if l.Layers <= 0 || l.Layers > overlay.MaxLayers {
		l.Layers = overlay.MaxLayers
	}
	return l
}
