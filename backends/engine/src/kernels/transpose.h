// Row-major tokens into and out of panels: transposes of dwords, in register squares of
// kLanes x kLanes. Include after a simd_<isa>.h.
#pragma once

namespace obert {
namespace {

// `columns` dwords of `rows` tokens, `stride` bytes apart, to [columns][kPanel]; lanes up to the next
// whole group are zero.
inline void import_dwords(const char* from, size_t stride, int rows, int columns, int32_t* panel) {
  const int padded = (rows + kGroup - 1) / kGroup * kGroup;
  for (int t = 0; t < padded; t += kLanes) {
    for (int c = 0; c < columns; c += kLanes) {
      const int width = columns - c < kLanes ? columns - c : kLanes;
      I32 square[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int32_t* row = reinterpret_cast<const int32_t*>(from + static_cast<size_t>(t + i) * stride) + c;
        if (t + i >= rows) square[i] = set(0);
        else square[i] = width == kLanes ? load(row) : load_first(row, width);
      }
      transpose(square);
      for (int i = 0; i < width; ++i) store(panel + static_cast<size_t>(c + i) * kPanel + t, square[i]);
    }
  }
}

inline void export_dwords(const int32_t* panel, int rows, int columns, char* to, size_t stride) {
  for (int t = 0; t < rows; t += kLanes) {
    const int count = rows - t < kLanes ? rows - t : kLanes;
    for (int c = 0; c < columns; c += kLanes) {
      const int width = columns - c < kLanes ? columns - c : kLanes;
      I32 square[kLanes];
      for (int i = 0; i < kLanes; ++i)
        square[i] = i < width ? load(panel + static_cast<size_t>(c + i) * kPanel + t) : set(0);
      transpose(square);
      for (int i = 0; i < count; ++i) {
        int32_t* row = reinterpret_cast<int32_t*>(to + static_cast<size_t>(t + i) * stride) + c;
        if (width == kLanes) store(row, square[i]);
        else store_first(row, square[i], width);
      }
    }
  }
}

void import_float(const float* rows, size_t stride, int tokens, int features, float* panel) {
  import_dwords(reinterpret_cast<const char*>(rows), stride * sizeof(float), tokens, features,
                reinterpret_cast<int32_t*>(panel));
}

void export_float(const float* panel, int tokens, int features, float* rows, size_t stride) {
  export_dwords(reinterpret_cast<const int32_t*>(panel), tokens, features, reinterpret_cast<char*>(rows),
                stride * sizeof(float));
}

void import_uint8(const uint8_t* rows, size_t stride, int tokens, int features, uint8_t zero_point,
                  uint8_t* panel) {
  const int whole = features / kBlock;
  import_dwords(reinterpret_cast<const char*>(rows), stride, tokens, whole,
                reinterpret_cast<int32_t*>(panel));
  if (features % kBlock == 0) return;
  const int padded = (tokens + kGroup - 1) / kGroup * kGroup;
  for (int t = 0; t < padded; ++t) {
    uint8_t* block = panel + (static_cast<size_t>(whole) * kPanel + t) * kBlock;
    for (int i = 0; i < kBlock; ++i) {
      const int f = whole * kBlock + i;
      block[i] = t < tokens && f < features ? rows[static_cast<size_t>(t) * stride + f] : zero_point;
    }
  }
}

void export_uint8(const uint8_t* panel, int tokens, int features, uint8_t* rows, size_t stride) {
  const int whole = features / kBlock;
  export_dwords(reinterpret_cast<const int32_t*>(panel), tokens, whole, reinterpret_cast<char*>(rows),
                stride);
  for (int f = whole * kBlock; f < features; ++f)
    for (int t = 0; t < tokens; ++t)
      rows[static_cast<size_t>(t) * stride + f] =
          panel[(static_cast<size_t>(whole) * kPanel + t) * kBlock + f % kBlock];
}

}  // namespace
}  // namespace obert
