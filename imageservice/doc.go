// Package imageservice turns a name into verified bytes and verified bytes into a root filesystem;
// it has never heard of pods.
//
// What it will not do: run anything (decompression is in process), follow the urls of a descriptor,
// unpack encrypted or schema 1 content, convert or push images, verify signatures, or decide which
// images may go. Nothing it lists is unverified or not yet on disk.
//
// # Files
//
//	content/          containerd's local content store below an OCI layout file: blobs/sha256/<hex>, ingest/ (partial downloads). A blob's file
//	                  has the repositories that sent it in an extended attribute
//	layers/<n>/fs     one unpacked layer, whiteouts in overlay form; <n> is a short number because mount(2) takes one page of options
//	layers/<n>/implied  directories that the layer's tar did not name although it put something into them (see layers/link.go)
//	layers/empty      the lower directory of an image without layers
//	layers/none       the second lower directory that a read-only mount of one layer needs
//	images/<hex>      the record of image sha256:<hex>, JSON with a checksum; *.torn is a damaged one
//
// A layer is keyed by its diff id alone: overlay's lower directories do not depend on each other.
//
// # Durability (invariant I10)
//
// Blobs and layers first, one syncfs, then the record: written, fsynced, renamed, its directory
// fsynced. Only then a name is listed. Removing goes the other way: the record is unlinked and its
// directory fsynced before the first byte of data goes. What Open finds without a record is debris:
// layers are deleted at once, as they were never proven; whole blobs were fsynced by the content
// store, are hashed again when somebody wants them, and are deleted when nobody did for a while. So
// are partial downloads, which are gone on with.
//
// A sync that fails takes every layer with it that no record lists: the kernel tells a write error
// once, to who synced first.
//
// # Proof
//
// Blobs and layers are shared by all images, but a digest in a document is not yet a right to what
// is here under that digest: see proof.go.
//
// # Strangers' pace
//
// Nobody waits for a registry that he does not pull from. Downloads of one blob wait for each other
// only when they come from one registry; the same from two is fetched twice, and the first that is
// whole stays. A layer may be unpacked while it arrives, in a place that nobody waits for; what
// waits for its turn, with a key or a slot, has all its bytes here.
//
// # Steps
//
// Names passed to Config.Step, in the order of a pull and a removal:
//
//	open.recovered
//	pull.resolved        the root document of the reference is known
//	pull.blob.written    one blob is verified and in content/
//	pull.unpacked        one layer is verified and in layers/
//	pull.synced          syncfs has returned
//	pull.record.written  the record is written and fsynced under a temporary name
//	pull.recorded        the record is in place and durable, the name not yet listed
//	pull.moved           a tag that moved is gone from the older image's record as well
//	remove.unrecorded    the record is gone for good, all data still there
//	remove.layer.gone    one layer is deleted
//	remove.blob.gone     one blob is deleted
//	sweep.done           debris older than its retention is deleted
//	mount.mounted
//	mount.unmounted
package imageservice
