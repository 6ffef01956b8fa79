package spec

// The annotations that sandboxed OCI runtimes read to tell a pod from its
// containers. These are all that a spec carries: an annotation of the request
// or a label of the image never gets here, because OCI runtimes act on some
// (org.systemd.property.*, run.oci.*).
const (
	annotationPrefix        = "io.kubernetes.cri."
	AnnotationType          = annotationPrefix + "container-type"
	AnnotationPodID         = annotationPrefix + "sandbox-id"
	AnnotationPodName       = annotationPrefix + "sandbox-name"
	AnnotationPodNamespace  = annotationPrefix + "sandbox-namespace"
	AnnotationPodUID        = annotationPrefix + "sandbox-uid"
	AnnotationContainerName = annotationPrefix + "container-name"
	AnnotationImageName     = annotationPrefix + "image-name"
)

func (d *draft) podAnnotations() error {
	m := d.pod.Config.GetMetadata()
	d.spec.Annotations = map[string]string{
		AnnotationType:         "sandbox",
		AnnotationPodID:        d.pod.ID,
		AnnotationPodName:      m.GetName(),
		AnnotationPodNamespace: m.GetNamespace(),
		AnnotationPodUID:       m.GetUid(),
	}
	return nil
}

func (d *draft) annotations() error {
	if err := d.podAnnotations(); err != nil {
		return err
	}
	d.spec.Annotations[AnnotationType] = "container"
	d.spec.Annotations[AnnotationContainerName] = d.c.Config.GetMetadata().GetName()
	d.spec.Annotations[AnnotationImageName] = d.c.ImageName
	return nil
}
