#include "codec/prefix_code.hpp"

#include <algorithm>
#include <cstring>

namespace fabric::codec {
namespace {

constexpr u32 kCodesPerWord = 5;   // 5 * kCodeBitsMax + 7 bits of a started byte <= 64
constexpr u32 kLooksPerWord = 5;
constexpr std::size_t kLookBytes = 6;  // symbols of one look; the store behind them is 8 bytes wide

u64 load(const u8* at) {
  u64 word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

u32 reversed(u32 code, u32 bits) {
  u32 out = 0;
  for (u32 i = 0; i < bits; ++i) out |= ((code >> i) & 1) << (bits - 1 - i);
  return out;
}

/// Canonical codes, shortest first, then by symbol; reversed, as the first bit is the lowest.
template <class Take> void canonical(const Lengths& lengths, Take take) {
  u32 code = 0;
  for (u32 bits = 1; bits <= kCodeBitsMax; ++bits) {
    code <<= 1;
    for (u32 symbol = 0; symbol < 256; ++symbol) {
      if (lengths[symbol] == bits) take(static_cast<u8>(symbol), reversed(code++, bits), bits);
    }
  }
}

struct Writer {
  u64 word = 0;
  u32 used = 0;
  u8* at;

  void add(u32 entry) {
    word |= u64{entry >> 8} << used;
    used += entry & 0xff;
  }
  void flush() {
    std::memcpy(at, &word, sizeof word);
    at += used >> 3;
    word >>= used & ~7u;
    used &= 7;
  }
};

struct Reader {
  u64 word = 0;
  u32 have = 0;
  const u8* at;
  const u8* end;

  /// At least 56 bits; 8 bytes can be read at `at`. Bits above `have` are those that come next, so or-ing them again is fine.
  void fill() {
    word |= load(at) << have;
    at += (63 - have) >> 3;
    have |= 56;
  }
  void fill_to_end() {
    for (; have <= 56 && at < end; have += 8) word |= u64{*at++} << have;
  }
  bool is_used_up() const { return at == end && have < 8 && word == 0; }
};

/// The rest of a stream, symbol by symbol.
bool decode_rest(Reader& reader, const DecodeTable& table, u8* out, const u8* out_end) {
  reader.word &= reader.have < 64 ? (u64{1} << reader.have) - 1 : ~u64{0};
  while (out < out_end) {
    reader.fill_to_end();
    const u32 window = static_cast<u32>(reader.word) & (kCodeWindow - 1);
    const u32 bits = table.first_bits[window];
    if (bits > reader.have) return false;
    *out++ = table.entry[window].symbols[0];
    reader.word >>= bits;
    reader.have -= bits;
  }
  reader.fill_to_end();
  return reader.is_used_up();
}

}  // namespace

EncodeTable::EncodeTable(const Lengths& lengths) {
  entry.fill(0);
  canonical(lengths, [this](u8 symbol, u32 code, u32 bits) { entry[symbol] = code << 8 | bits; });
}

bool DecodeTable::build(const Lengths& lengths) {
  u32 taken = 0;
  for (const u8 bits : lengths) {
    if (bits > kCodeBitsMax) return false;
    if (bits > 0) taken += kCodeWindow >> bits;
  }
  if (taken != kCodeWindow) return false;
  std::array<u8, kCodeWindow> first;
  canonical(lengths, [&](u8 symbol, u32 code, u32 bits) {
    for (u32 window = code; window < kCodeWindow; window += 1u << bits) {
      first[window] = symbol;
      first_bits[window] = static_cast<u8>(bits);
    }
  });
  for (u32 window = 0; window < kCodeWindow; ++window) {
    Entry found{};
    u32 rest = window;
    while (found.count < kLookBytes && found.bits + first_bits[rest] <= kCodeBitsMax) {
      found.symbols[found.count++] = first[rest];
      found.bits = static_cast<u8>(found.bits + first_bits[rest]);
      rest = window >> found.bits;
    }
    entry[window] = found;
  }
  return true;
}

std::size_t encode_symbols(const u8* symbols, std::size_t n, const EncodeTable& table, u8* out,
                           u32 (&sizes)[kStreams]) {
  u8* at = out;
  for (u32 stream = 0; stream < kStreams; ++stream) {
    Writer writer{.at = at};
    const u8* symbol = symbols + stream_begin(n, stream);
    const u8* end = symbols + stream_begin(n, stream + 1);
    for (; end - symbol >= kCodesPerWord; symbol += kCodesPerWord) {
      for (u32 i = 0; i < kCodesPerWord; ++i) writer.add(table.entry[symbol[i]]);
      writer.flush();
    }
    for (; symbol < end; ++symbol) {
      writer.add(table.entry[*symbol]);
      writer.flush();
    }
    writer.used += 7;  // a started byte is written, too
    writer.flush();
    sizes[stream] = static_cast<u32>(writer.at - at);
    at = writer.at;
  }
  return static_cast<std::size_t>(at - out);
}

bool decode_symbols(const u8* in, const u32 (&sizes)[kStreams], std::size_t n, const DecodeTable& table, u8* out) {
  Reader reader[kStreams];
  u8* to[kStreams];
  const u8* at = in;
  for (u32 i = 0; i < kStreams; ++i) {
    reader[i].at = at;
    reader[i].end = at += sizes[i];
    to[i] = out + stream_begin(n, i);
  }
  // While each stream has a word to read and room for five looks: the same steps for all, so that they overlap.
  const auto rounds = [&] {
    std::size_t least = ~std::size_t{0};
    for (u32 i = 0; i < kStreams; ++i) {
      const std::size_t readable = static_cast<std::size_t>(reader[i].end - reader[i].at);
      const std::size_t room = static_cast<std::size_t>(out + stream_begin(n, i + 1) - to[i]);
      least = std::min({least, readable / 8, room >= 2 ? (room - 2) / (kLooksPerWord * kLookBytes) : 0});
    }
    return least;
  };
  for (std::size_t left = rounds(); left > 0; left = rounds()) {
    while (left-- > 0) {
      for (Reader& r : reader) r.fill();
      for (u32 look = 0; look < kLooksPerWord; ++look) {
        for (u32 i = 0; i < kStreams; ++i) {
          const DecodeTable::Entry& found = table.entry[reader[i].word & (kCodeWindow - 1)];
          std::memcpy(to[i], &found, sizeof found);
          to[i] += found.count;
          reader[i].word >>= found.bits;
          reader[i].have -= found.bits;
        }
      }
    }
  }
  for (u32 i = 0; i < kStreams; ++i) {
    if (!decode_rest(reader[i], table, to[i], out + stream_begin(n, i + 1))) return false;
  }
  return true;
}

}  // namespace fabric::codec
