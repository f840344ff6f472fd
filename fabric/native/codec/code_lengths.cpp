#include <algorithm>
#include <numeric>

#include "codec/prefix_code.hpp"

namespace fabric::codec {
namespace {

struct Leaf {
  u32 count;
  u8 symbol;
};

/// Huffman's construction over leaves sorted by count, with two queues (van Leeuwen, 1976): the depth of each leaf.
void depths(const Leaf* leaves, u32 n, u8* depth) {
  std::array<u64, 512> weight{};
  std::array<u16, 512> parent{};
  for (u32 i = 0; i < n; ++i) weight[i] = leaves[i].count;
  u32 leaf = 0, inner = n;
  const auto smallest = [&](u32 made) {
    return leaf < n && (inner >= made || weight[leaf] <= weight[inner]) ? leaf++ : inner++;
  };
  for (u32 made = n; made < 2 * n - 1; ++made) {
    const u32 a = smallest(made), b = smallest(made);
    weight[made] = weight[a] + weight[b];
    parent[a] = parent[b] = static_cast<u16>(made);
  }
  std::array<u16, 512> down{};  // of the nodes; a path of 255 is possible
  for (u32 node = 2 * n - 2; node-- > 0;) {
    down[node] = static_cast<u16>(down[parent[node]] + 1);
    if (node < n) depth[node] = static_cast<u8>(std::min<u32>(down[node], 255));
  }
}

/// Shortens codes to the limit, then repays what that took too much of the code space from the rarest codes that
/// can be longer, and gives what is over to the most frequent that can be shorter. Leaves are in ascending order.
void limit(u32 n, u8* depth) {
  u32 taken = 0;  // of kCodeWindow
  for (u32 i = 0; i < n; ++i) {
    depth[i] = std::min<u8>(depth[i], kCodeBitsMax);
    taken += kCodeWindow >> depth[i];
  }
  for (u32 i = 0; taken > kCodeWindow; i = i + 1 < n ? i + 1 : 0) {
    if (depth[i] >= kCodeBitsMax) continue;
    ++depth[i];
    taken -= kCodeWindow >> depth[i];
  }
  for (u32 i = n; i-- > 0;) {
    while (depth[i] > 1 && taken + (kCodeWindow >> depth[i]) <= kCodeWindow) {
      taken += kCodeWindow >> depth[i];
      --depth[i];
    }
  }
}

}  // namespace

void choose_lengths(const Counts& counts, Lengths& lengths) {
  std::array<Leaf, 256> leaves;
  u32 n = 0;
  for (u32 symbol = 0; symbol < 256; ++symbol) {
    if (counts[symbol] > 0) leaves[n++] = {counts[symbol], static_cast<u8>(symbol)};
  }
  std::sort(leaves.begin(), leaves.begin() + n, [](const Leaf& a, const Leaf& b) {
    return a.count != b.count ? a.count < b.count : a.symbol < b.symbol;
  });
  std::array<u8, 256> depth{};
  depths(leaves.data(), n, depth.data());
  limit(n, depth.data());
  lengths.fill(0);
  for (u32 i = 0; i < n; ++i) lengths[leaves[i].symbol] = depth[i];
}

u64 coded_bits(const Counts& counts, const Lengths& lengths) {
  u64 bits = 0;
  for (u32 symbol = 0; symbol < 256; ++symbol) bits += u64{counts[symbol]} * lengths[symbol];
  return bits;
}

}  // namespace fabric::codec
