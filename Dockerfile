# Builds the daemon. cribox runs on the host, beside the kubelet, not in a
# container: the image only carries the binary.
#
#   docker build --output=bin .     puts bin/cribox here
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /out/cribox . \
    && /out/cribox version

FROM scratch
COPY --from=build /out/cribox /cribox
ENTRYPOINT ["/cribox"]
CMD ["version"]
