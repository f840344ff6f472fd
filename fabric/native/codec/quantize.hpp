// Quantisation of matrices to 8 bits with scales by column or by group, and what it loses.
//
// Pure functions over memory of the caller's, from any thread. Scales are f32: the largest number of the code stands for
// the largest size in the column or group, so |x - x'| <= scale / 2 for i8 (Jacob et al., arXiv:1712.05877, symmetric).
#pragma once

#include <cstddef>

#include "core/layout.hpp"

namespace fabric::codec {

enum class Number : u8 { f32, f16, bf16 };
enum class Code8 : u8 { i8, e4m3, e5m2 };

/// A matrix in rows, and which numbers share a scale: group > 0, that many neighbours in a row (the last may be fewer);
/// group 0, the numbers of a column.
struct Matrix {
  std::size_t rows, columns, group;
  std::size_t groups() const { return group == 0 ? 0 : (columns + group - 1) / group; }
  std::size_t scales() const { return group == 0 ? columns : rows * groups(); }
};

struct Loss {
  double error2 = 0, norm2 = 0;  ///< sums of (x - x')^2 and x^2
  double worst_row = 0;          ///< largest |x - x'| / |x| of a row, as norms; 1 where it is too small or large to be measured
  bool finite = true;            ///< false: NaN or infinities are there, and the codes mean nothing
};

Loss quantize(const void* numbers, Number number, const Matrix& matrix, Code8 code, u8* codes, float* scales);
void dequantize(const u8* codes, Code8 code, const Matrix& matrix, const float* scales, Number number, void* numbers);

}  // namespace fabric::codec
