#include "checker/decompress.h"

#include <zlib.h>
#include <zstd.h>

#include <memory>

#include "absl/strings/str_cat.h"

namespace qcow2check {
namespace {

// QEMU inflates with a window of this many bits; a stream that needs more cannot be read there.
constexpr int kDeflateWindowBits = 12;

DecompressResult Inflate(absl::Span<const uint8_t> input, absl::Span<uint8_t> output) {
  z_stream stream = {};
  if (inflateInit2(&stream, -kDeflateWindowBits) != Z_OK) return {"zlib cannot start", 0};
  stream.next_in = const_cast<Bytef*>(input.data());
  stream.avail_in = static_cast<uInt>(input.size());
  stream.next_out = output.data();
  stream.avail_out = static_cast<uInt>(output.size());
  const int result = inflate(&stream, Z_FINISH);
  DecompressResult decompressed;
  decompressed.consumed_bytes = stream.total_in;
  // A stream may go on behind the cluster only in theory; a full cluster is all that is read.
  const bool full = stream.avail_out == 0;
  if (!full || (result != Z_STREAM_END && result != Z_BUF_ERROR)) {
    const char* reason = stream.msg != nullptr ? stream.msg : "the stream ends too early";
    decompressed.error = absl::StrCat("deflate: ", reason, " after ", stream.total_out, " of ",
                                      output.size(), " bytes");
  }
  inflateEnd(&stream);
  return decompressed;
}

DecompressResult DecompressZstd(absl::Span<const uint8_t> input, absl::Span<uint8_t> output) {
  const std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> context(ZSTD_createDCtx(),
                                                                   ZSTD_freeDCtx);
  if (context == nullptr) return {"zstd cannot start", 0};
  ZSTD_inBuffer in = {input.data(), input.size(), 0};
  ZSTD_outBuffer out = {output.data(), output.size(), 0};
  size_t open = 0;  // 0: the last frame has ended
  while (out.pos < out.size) {
    const size_t in_before = in.pos, out_before = out.pos;
    open = ZSTD_decompressStream(context.get(), &out, &in);
    if (ZSTD_isError(open)) return {absl::StrCat("zstd: ", ZSTD_getErrorName(open)), in.pos};
    if (in.pos == in_before && out.pos == out_before) {
      return {absl::StrCat("zstd: the stream ends after ", out.pos, " of ", out.size, " bytes"),
              in.pos};
    }
  }
  if (open != 0) return {"zstd: the frame is longer than a cluster", in.pos};
  return {"", in.pos};
}

}  // namespace

DecompressResult DecompressCluster(absl::Span<const uint8_t> input, CompressionType type,
                                   absl::Span<uint8_t> output) {
  return type == kZstd ? DecompressZstd(input, output) : Inflate(input, output);
}

}  // namespace qcow2check
