#include "codec/float_codec.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "codec/byte_planes.hpp"

namespace fabric::codec {
namespace {

constexpr u32 kHeaderBytes = 16, kRotated = 1, kBased = 2;
constexpr u32 kRaw = 0, kSame = 1, kCoded = 2, kModeShift = 30;
constexpr std::size_t kSampleRun = 64, kSampleRuns = 32;  // of a plane, to see whether coding it pays
constexpr u32 kBaseSampleRows = 64;
constexpr double kPays = 0.97;                            // of its bytes: below, a plane is coded

u64 padded(u64 n) { return n + 64; }

u64 block_elements(u32 row) { return row > 1 ? kBlockElements / row * row : kBlockElements; }

template <class T> void put(u8*& at, T value) {
  std::memcpy(at, &value, sizeof value);
  at += sizeof value;
}

template <class T> T get(const u8* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

double entropy_bits(const Counts& counts, double n) {
  double bits = 0;
  for (const u32 count : counts) {
    if (count > 0) bits += count * std::log2(n / count);
  }
  return bits / n;
}

/// Whether a look at a few places says that coding pays; the samples of a small plane are all of it.
bool seems_codable(const u8* plane, std::size_t n) {
  if (n < kSampleRun * kSampleRuns) return true;
  Counts counts{}, some;
  const std::size_t step = n / kSampleRuns;
  for (std::size_t run = 0; run < kSampleRuns; ++run) {
    count_bytes(plane + run * step, kSampleRun, some);
    for (u32 symbol = 0; symbol < 256; ++symbol) counts[symbol] += some[symbol];
  }
  // 2,048 samples of 256 equally likely bytes show 7.9 bits.
  return entropy_bits(counts, kSampleRun * kSampleRuns) < 7.5;
}

/// One plane of a block, as `mode << 30 | bytes`; `out` has room for n and slack.
u32 encode_plane(const u8* plane, std::size_t n, u8* out) {
  const auto raw = [&] {
    std::memcpy(out, plane, n);
    return kRaw << kModeShift | static_cast<u32>(n);
  };
  if (!seems_codable(plane, n)) return raw();
  Counts counts;
  count_bytes(plane, n, counts);
  u32 low = 0, high = 255;
  while (counts[low] == 0) ++low;
  while (counts[high] == 0) --high;
  if (low == high) {
    out[0] = static_cast<u8>(low);
    return kSame << kModeShift | 1;
  }
  Lengths lengths;
  choose_lengths(counts, lengths);
  const u32 symbols = high - low + 1, table_bytes = 2 + (symbols + 1) / 2;
  const u64 coded = table_bytes + 12 + coded_bits(counts, lengths) / 8 + kStreams;
  if (static_cast<double>(coded) > kPays * static_cast<double>(n)) return raw();
  u8* at = out;
  put(at, static_cast<u8>(low));
  put(at, static_cast<u8>(symbols - 1));
  for (u32 i = 0; i < symbols; i += 2) {
    put(at, static_cast<u8>(lengths[low + i] | (i + 1 < symbols ? lengths[low + i + 1] << 4 : 0)));
  }
  u32 sizes[kStreams];
  const std::size_t bytes = encode_symbols(plane, n, EncodeTable(lengths), at + 12, sizes);
  std::memcpy(at, sizes, 12);
  return kCoded << kModeShift | (table_bytes + 12 + static_cast<u32>(bytes));
}

const char* decode_plane(const u8* in, u32 mode, u32 bytes, std::size_t n, u8* plane, DecodeTable& table) {
  if (mode == kSame) {
    if (bytes != 1) return "a plane of one byte has another size";
    std::memset(plane, in[0], n);
    return nullptr;
  }
  if (mode != kCoded || bytes < 2) return "a plane has an unknown mode";
  const u32 low = in[0], symbols = u32{in[1]} + 1, table_bytes = 2 + (symbols + 1) / 2;
  if (low + symbols > 256 || bytes < table_bytes + 12) return "a table of code lengths does not fit";
  Lengths lengths{};
  for (u32 i = 0; i < symbols; ++i) lengths[low + i] = in[2 + i / 2] >> (i % 2 * 4) & 15;
  if (!table.build(lengths)) return "code lengths are no complete code";
  u32 sizes[kStreams];
  std::memcpy(sizes, in + table_bytes, 12);
  u64 left = bytes - table_bytes - 12;
  for (u32 i = 0; i + 1 < kStreams; ++i) {
    if (sizes[i] > left) return "a stream is longer than its plane";
    left -= sizes[i];
  }
  sizes[kStreams - 1] = static_cast<u32>(left);
  if (!decode_symbols(in + table_bytes + 12, sizes, n, table, plane)) return "a stream does not hold its symbols";
  return nullptr;
}

/// Planes of one block, with room for the slack of what is decoded into them; not cleared.
struct Planes {
  std::unique_ptr<u8[]> memory;
  u8* plane[kWidthMax];
  Planes(u32 width, u64 elements) : memory(new u8[width * padded(elements)]) {
    for (u32 k = 0; k < width; ++k) plane[k] = memory.get() + k * padded(elements);
  }
};

/// Whether subtracting the columns' means from the exponents makes them cheaper; fills `base`.
bool find_base(const u8* raw, u64 elements, const FloatLayout& layout, u8* base) {
  const u32 row = layout.row;
  if (row < 2 || row > kRowMax || elements / row < 8) return false;
  const u64 rows = std::min<u64>(elements / row, kBaseSampleRows), step = elements / row / rows;
  Planes planes(layout.width, row);
  u8* top = planes.plane[layout.width - 1];
  std::unique_ptr<u32[]> sum(new u32[row]());
  Counts plain{}, shifted{};
  for (u64 r = 0; r < rows; ++r) {
    split_planes(raw + r * step * row * layout.width, row, layout.width, layout.rotated, planes.plane);
    for (u32 i = 0; i < row; ++i) sum[i] += top[i];
  }
  for (u32 i = 0; i < row; ++i) base[i] = static_cast<u8>((sum[i] + rows / 2) / rows);
  for (u64 r = 0; r < rows; ++r) {
    split_planes(raw + r * step * row * layout.width, row, layout.width, layout.rotated, planes.plane);
    for (u32 i = 0; i < row; ++i) {
      ++plain[top[i]];
      ++shifted[static_cast<u8>(top[i] - base[i])];
    }
  }
  const double n = static_cast<double>(rows * row);
  const double saved_bits = (entropy_bits(plain, n) - entropy_bits(shifted, n)) * static_cast<double>(elements);
  return saved_bits > 8.0 * row + 0.05 * static_cast<double>(elements);
}

u64 encode_block(const u8* raw, u64 n, const FloatLayout& layout, const u8* base, Planes& planes, u8* out) {
  u8* at = out + 4 * layout.width;
  split_planes(raw, n, layout.width, layout.rotated, planes.plane);
  if (base != nullptr) shift_rows(planes.plane[layout.width - 1], n, base, layout.row, false);
  for (u32 k = 0; k < layout.width; ++k) {
    const u32 word = encode_plane(planes.plane[k], n, at);
    std::memcpy(out + 4 * k, &word, 4);
    at += word & ((1u << kModeShift) - 1);
  }
  return static_cast<u64>(at - out);
}

struct Header {
  FloatLayout layout;
  bool based;
  u64 raw_bytes;
};

const char* read_header(const u8* in, u64 bytes, Header& out) {
  if (bytes < kHeaderBytes || std::memcmp(in, "fbc", 3) != 0) return "this is nothing that the float codec wrote";
  if (in[3] != kFloatCodecVersion) return "it is of another version of the float codec";
  const u32 width = in[4], flags = in[5], row = get<u16>(in + 6);
  out = {{width, (flags & kRotated) != 0, row}, (flags & kBased) != 0, get<u64>(in + 8)};
  if (width == 0 || width > kWidthMax || (width & (width - 1)) != 0 || flags > 3) return "its header is malformed";
  if (out.based ? row < 2 || row > kRowMax || bytes < kHeaderBytes + row : row != 0) return "its row is malformed";
  return nullptr;
}

const char* decode_block(const u8*& in, const u8* end, u64 n, const Header& header, const u8* base, Planes& planes,
                         DecodeTable& table, u8* raw) {
  const u32 width = header.layout.width;
  if (static_cast<u64>(end - in) < 4 * width) return "it ends within a block";
  const u8* sizes = in;
  const u8* from[kWidthMax];
  in += 4 * width;
  for (u32 k = 0; k < width; ++k) {
    const u32 word = get<u32>(sizes + 4 * k), mode = word >> kModeShift, bytes = word & ((1u << kModeShift) - 1);
    if (static_cast<u64>(end - in) < bytes) return "it ends within a plane";
    from[k] = planes.plane[k];
    if (mode == kRaw) {
      if (bytes != n) return "a raw plane has another size";
      if (base == nullptr || k + 1 < width) {
        from[k] = in;
      } else {
        std::memcpy(planes.plane[k], in, n);  // its columns are shifted back in place
      }
    } else if (const char* why = decode_plane(in, mode, bytes, n, planes.plane[k], table); why != nullptr) {
      return why;
    }
    in += bytes;
  }
  if (base != nullptr) shift_rows(planes.plane[width - 1], n, base, header.layout.row, true);
  merge_planes(from, n, width, header.layout.rotated, raw);
  return nullptr;
}

}  // namespace

u64 encoded_floats_max(u64 raw_bytes, const FloatLayout& layout) {
  const u64 blocks = raw_bytes / layout.width / block_elements(layout.row) + 1;
  return kHeaderBytes + layout.row + raw_bytes + blocks * 4 * layout.width + 64;
}

u64 encode_floats(const u8* raw, u64 raw_bytes, const FloatLayout& given, u8* out) {
  FloatLayout layout = given;
  const u64 elements = raw_bytes / layout.width;
  const bool based = find_base(raw, elements, layout, out + kHeaderBytes);
  if (!based) layout.row = 0;
  u8* at = out;
  std::memcpy(at, "fbc", 3);
  at[3] = kFloatCodecVersion;
  at[4] = static_cast<u8>(layout.width);
  at[5] = static_cast<u8>((layout.rotated ? kRotated : 0) | (based ? kBased : 0));
  at += 6;
  put(at, static_cast<u16>(layout.row));
  put(at, raw_bytes);
  const u8* base = based ? at : nullptr;
  at += layout.row;
  const u64 most = block_elements(layout.row);
  Planes planes(layout.width, std::min(most, elements));
  for (u64 done = 0; done < elements; done += most) {
    at += encode_block(raw + done * layout.width, std::min(most, elements - done), layout, base, planes, at);
  }
  const u64 rest = raw_bytes % layout.width;
  if (rest > 0) std::memcpy(at, raw + raw_bytes - rest, rest);
  return static_cast<u64>(at + rest - out);
}

u64 decoded_floats_bytes(const u8* in, u64 bytes, const char*& why) {
  Header header;
  why = read_header(in, bytes, header);
  return why == nullptr ? header.raw_bytes : 0;
}

const char* decode_floats(const u8* in, u64 bytes, u8* raw, u64 raw_bytes) {
  Header header;
  if (const char* why = read_header(in, bytes, header); why != nullptr) return why;
  if (header.raw_bytes != raw_bytes) return "it is of another number of bytes";
  const u8 *end = in + bytes, *at = in + kHeaderBytes + header.layout.row;
  const u8* base = header.based ? in + kHeaderBytes : nullptr;
  const u32 width = header.layout.width;
  const u64 elements = raw_bytes / width, most = block_elements(header.layout.row), rest = raw_bytes % width;
  Planes planes(width, std::min(most, elements));
  const auto table = std::make_unique_for_overwrite<DecodeTable>();
  for (u64 done = 0; done < elements; done += most) {
    const u64 n = std::min(most, elements - done);
    const char* why = decode_block(at, end, n, header, base, planes, *table, raw + done * width);
    if (why != nullptr) return why;
  }
  if (static_cast<u64>(end - at) != rest) return "it does not end where it should";
  if (rest > 0) std::memcpy(raw + raw_bytes - rest, at, rest);
  return nullptr;
}

}  // namespace fabric::codec
