# Builds the daemon. cribox runs on the host, beside the kubelet, not in a
# container: the image only carries the binaries.
#
#   docker build --output=bin .     puts bin/cribox and bin/cribox-helper here
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /out/ . ./cribox-helper \
    && /out/cribox version

FROM scratch
COPY --from=build /out/cribox /out/cribox-helper /
ENTRYPOINT ["/cribox"]
CMD ["version"]
