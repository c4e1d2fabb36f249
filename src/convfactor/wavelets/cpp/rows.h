// Rows of several images side by side: where their numbers lie, and how they get there.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>

#include "filters.h"

namespace convfactor {

// Rows of images side by side, in streams: sample `count * i + s` of an image is element i of its
// part of stream s. Parts are so far apart that a filter runs over all of them as over one.
struct Layout {
  int64_t count, images, periods, margin, stride;

  template <typename A>
  static Layout of(int64_t count, int64_t images, int64_t periods, int64_t margin) {
    const int64_t needed = images * (periods + 2 * margin) + 2 * margin;
    constexpr int64_t step = Lanes<A>::count;
    return {count, images, periods, margin, (needed + step - 1) / step * step};
  }

  int64_t size() const { return count * stride; }
  int64_t pitch() const { return periods + 2 * margin; }
  int64_t part(int64_t image) const { return 2 * margin + image * pitch(); }
  // Divisions would take longer than the sums: there are 1, 2 or 4 streams.
  int64_t at(int64_t sample) const {
    return (sample & (count - 1)) * stride + (sample >> __builtin_ctzll(count));
  }
};

// Takes a row of an image apart into streams, or puts it together.
template <int64_t N, typename A>
void deal(const A* __restrict row, int64_t count, A* __restrict streams, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t s = 0; s < N; ++s) streams[s * stride + i] = row[N * i + s];
  }
}

template <int64_t N, typename A>
void gather(const A* __restrict streams, int64_t stride, int64_t count, A* __restrict row) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t s = 0; s < N; ++s) row[N * i + s] = streams[s * stride + i];
  }
}

template <typename A>
void deal(const A* row, A* to, const Layout& layout) {
  if (layout.count == 1) return std::copy(row, row + layout.periods, to), void();
  if (layout.count == 2) return deal<2>(row, layout.periods, to, layout.stride);
  deal<4>(row, layout.periods, to, layout.stride);
}

template <typename A>
void gather(const A* from, const Layout& layout, A* row) {
  if (layout.count == 1) return std::copy(from, from + layout.periods, row), void();
  if (layout.count == 2) return gather<2>(from, layout.stride, layout.periods, row);
  gather<4>(from, layout.stride, layout.periods, row);
}

// What becomes of samples beyond the ends of rows, in a symmetric extension.
class Mirror {
 public:
  Mirror() = default;

  explicit Mirror(const Layout& layout) : layout_(layout) {
    const int64_t size = layout.count * layout.periods, margin = layout.count * layout.margin;
    for (int64_t i = 0; i < margin; ++i) {
      for (const int64_t sample : {-1 - i, size + i}) {
        places_.emplace_back(layout.at(sample), layout.at(Taps::mirrored(sample, size)));
      }
    }
  }

  // Fills what the filter reads beyond the ends.
  template <typename A>
  void extend(A* row) const {
    for (int64_t image = 0; image < layout_.images; ++image) {
      A* part = row + layout_.part(image);
      for (const auto& [outside, inside] : places_) part[outside] = part[inside];
    }
  }

  // Its adjoint: adds what the filter has written beyond the ends.
  template <typename A>
  void fold(A* row) const {
    for (int64_t image = 0; image < layout_.images; ++image) {
      A* part = row + layout_.part(image);
      for (const auto& [outside, inside] : places_) part[inside] += part[outside];
    }
  }

 private:
  Layout layout_{};
  std::vector<std::pair<int64_t, int64_t>> places_;  // none: zeros, which rows have there anyway
};

// Has memory fetched that is soon read, or written: rows of several images and bands by turns are
// more streams than processors follow by themselves.
template <int Written, typename A>
void ahead(const A* from, int64_t count) {
  for (int64_t i = 0; i < count; i += Lanes<A>::count) __builtin_prefetch(from + i, Written);
}

// A tensor whose numbers are read as A: in place where they are, else converted into a room.
template <typename A>
class Input {
 public:
  explicit Input(const at::Tensor& tensor) : tensor_(tensor) {
    if (!tensor.defined()) return;
    strides_ = tensor.strides().vec();
    if (tensor.scalar_type() == c10::CppTypeToScalarType<A>::value) {
      direct_ = tensor.const_data_ptr<A>();
    }
  }

  bool defined() const { return tensor_.defined(); }
  int64_t stride(int64_t dim) const { return strides_[dim]; }

  // `count` numbers from there; the next are expected to be read later.
  const A* read(int64_t offset, int64_t count, A* room) const {
    if (direct_) {
      ahead<0>(direct_ + offset + count, count);
      return direct_ + offset;
    }
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, tensor_.scalar_type(), "read", [&] {
          const scalar_t* data = tensor_.const_data_ptr<scalar_t>() + offset;
          for (int64_t i = 0; i < count; ++i) room[i] = static_cast<A>(data[i]);
        });
    return room;
  }

 private:
  at::Tensor tensor_;
  std::vector<int64_t> strides_;
  const A* direct_ = nullptr;
};

// A contiguous tensor that is written as A: in place where it can be, else from a room.
template <typename A>
class Output {
 public:
  explicit Output(const at::Tensor& tensor) : tensor_(tensor) {
    if (tensor.defined() && tensor.scalar_type() == c10::CppTypeToScalarType<A>::value) {
      direct_ = tensor.mutable_data_ptr<A>();
    }
  }

  bool defined() const { return tensor_.defined(); }

  // Calls make(to), which writes `count` numbers.
  template <typename Make>
  void write(int64_t offset, int64_t count, A* room, const Make& make) const {
    if (direct_) {
      ahead<1>(direct_ + offset + count, count);
      return make(direct_ + offset);
    }
    make(room);
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, tensor_.scalar_type(), "write", [&] {
          scalar_t* data = tensor_.mutable_data_ptr<scalar_t>() + offset;
          for (int64_t i = 0; i < count; ++i) data[i] = static_cast<scalar_t>(room[i]);
        });
  }

 private:
  at::Tensor tensor_;
  A* direct_ = nullptr;
};

}  // namespace convfactor
