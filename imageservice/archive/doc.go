// Package archive reads the images of one tar archive, as `docker save` writes it or in the OCI
// layout, and answers for each the requests of a pull, like a registry. So whatever a pull verifies
// and limits holds for an archive too; this package verifies nothing itself.
//
// It answers with the blobs of a folder, too, such as that of containerd.
//
// The archive is first written to a file without a name, decompressed: nothing of it is left when
// the process is killed, and memory does not depend on its size.
package archive
