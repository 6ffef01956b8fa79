package layers

import "github.com/cribox/cribox/imageservice/overlay"

// Limits limits what a registry can make us store (I13). Zero fields mean the default.
type Limits struct {
	LayerBytes int64 // uncompressed bytes of one layer's tar; default 64 GiB
	ImageBytes int64 // of all layers: compressed, uncompressed and written bytes, each; default 256 GiB
	Entries    int64 // tar entries of one layer, with implied directories; default 5,000,000
	Ratio      int64 // ratio of uncompressed to compressed bytes beyond which Reserve applies; default 200
	RatioFloor int64 // uncompressed bytes up to which Ratio does not apply; default 256 MiB
	Reserve    int   // percent of the disk that a layer beyond Ratio must leave free; default 0
	Layers     int   // layers of one image; default and maximum 500, the limit of overlayfs
}

const (
	maxLooks  = 16 << 20  // lookups of implied directories in the layers of one image
	maxName   = 4096      // bytes of a path in a layer
	maxNames  = 128 << 20 // bytes of names and times of directories, see caps
	maxWindow = 128 << 20 // bytes of a zstd window, the largest that zstd uses without --ultra --long
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
