// Package imageservice turns an image name into verified data, and that data into a root
// filesystem. It does not know pods.
//
// It never executes anything (decompression is in process), follows the urls of a descriptor,
// unpacks encrypted layers or schema 1 manifests, converts or pushes images, verifies signatures,
// or decides which images to delete. It lists only images that are verified and on disk.
//
// # Files
//
//	content/           blobs in an OCI layout, blobs/sha256/<hex>, and ingest/ (partial downloads).
//	                   An extended attribute of a blob's file lists the repositories that sent it
//	layers/<n>/fs      one unpacked layer, with whiteouts in the format of overlayfs; <n> is a
//	                   short number because all options of mount(2) must fit into one page
//	layers/<n>/implied directories into which the layer's tar puts something without an entry of
//	                   their own (see layers/link.go)
//	layers/empty       the lower directory of an image without layers
//	layers/none        the second lower directory that a read-only mount of one layer needs
//	images/<hex>       the record of image sha256:<hex>, JSON with a checksum; damaged ones are
//	                   renamed to *.torn
//
// The key of a layer is its diff ID alone, because overlayfs directories do not depend on each
// other.
//
// # Durability (invariant I10)
//
// A pull first writes blobs and layers, then calls syncfs, then writes the record: it writes a
// temporary file, fsyncs it, renames it, and fsyncs the folder. Only then does it list the name.
// Removing works in reverse: it unlinks the record and fsyncs the folder before it deletes any
// data. Open deletes layers without a record at once, because they may be incomplete on disk. Blobs
// without a record may be incomplete, too; they are hashed again before they are used, and deleted
// if no pull needs them for a while. Partial downloads are resumed, or deleted in the same way.
// Nothing else is synced: blobs and layers are on disk by the one syncfs before the record.
//
// When a sync fails, all data without a record is deleted: the kernel reports a write error only
// once, to the first process that syncs.
//
// # Proof
//
// Images share blobs and layers. But a digest in a document does not entitle a pull to use local
// data with that digest: see pull/proof.go.
//
// # Repair
//
// A damaged blob keeps its name until an undamaged one replaces it in one rename (content/writer.go):
// a record whose blob is missing would be lost at the next start. A damaged layer is never changed,
// because containers may have it mounted. It is unpacked again into another folder, which the records
// then list; the damaged folder is deleted when no mount shows it (repair.go).
//
// # Slow registries
//
// A pull never waits for a registry other than its own. Two downloads of one blob wait for each
// other only if they come from the same registry; from two registries the blob is downloaded twice,
// and the first complete one is kept. A layer may be unpacked while it is being downloaded, but
// then it uses neither a key nor a slot that other pulls wait for: only complete downloads do.
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
//	pull.moved           a tag that moved is removed from the older image's record
//	remove.unrecorded    the record is deleted and cannot come back, all data still exists
//	remove.layer.gone    one layer is deleted
//	remove.blob.gone     one blob is deleted
//	verify.unpacked      a layer is unpacked a second time and compared
//	verify.recorded      the first record lists the repaired layer in the place of the damaged one
//	sweep.done           debris older than its retention is deleted
//	mount.mounted
//	mount.unmounted
package imageservice
