// What both directions of a level share: its filters, rows of any dtype, and a window of rows.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/Dispatch.h>

#include "filters.h"

namespace convfactor {

// The roles of a level's filters; HALF and HALF_BAND carry the complex pairs' one over root two.
enum Role { LOW, HIGH, BAND, HALF, HALF_BAND, ROLES };

struct Bank {
  std::vector<Taps> taps;  // low, high, and band for the diagonals where they have their own
  bool transposed;
  int64_t reach = 0;

  Bank(at::TensorList weights, at::IntArrayRef starts, int64_t cols, int64_t spacing,
       bool symmetric, bool transposed)
      : transposed(transposed) {
    for (const at::Tensor& given : weights) {
      const at::Tensor exact = given.to(at::kDouble).contiguous();
      const double* data = exact.const_data_ptr<double>();
      const int64_t phases = exact.size(0);
      TORCH_CHECK(starts.size() >= static_cast<size_t>(phases), "a start for every phase");
      taps.push_back({{data, data + exact.numel()},
                      starts.slice(0, phases).vec(),
                      exact.size(1), cols, spacing, symmetric});
      starts = starts.slice(phases);
      reach = std::max(reach, taps.back().reach());
    }
  }

  bool diagonal() const { return taps.size() > 2; }
  int64_t rows() const { return transposed ? taps[0].cols : taps[0].phases(); }
  int64_t cols() const { return transposed ? taps[0].phases() : taps[0].cols; }

  Filter filter(Role role, int64_t size) const {
    const bool half = role == HALF || role == HALF_BAND;
    const size_t named = role == HALF ? HIGH : role == HALF_BAND ? BAND : role;
    const Taps& found = taps[std::min(named, taps.size() - 1)];  // high serves as band
    return Filter(found, reach, half ? std::sqrt(0.5) : 1.0, size, transposed);
  }
};

template <typename A>
Streams streams(int64_t count, int64_t size) {
  const int64_t whole = (size / count + Lanes<A>::count - 1) / Lanes<A>::count;
  return {count, whole * Lanes<A>::count};
}

// The filters of a level for images of one size, by role.
template <typename A>
struct Filters {
  Streams from, to;  // rows before and after the filters along them
  std::vector<Filter> columns;
  std::vector<RowFilter<A>> rows;

  Filters(const Bank& bank, int64_t height, int64_t width)
      : from(streams<A>(bank.cols(), width)),
        to(streams<A>(bank.rows(), width / bank.cols() * bank.rows())) {
    for (int64_t role = 0; role < ROLES; ++role) {
      columns.push_back(bank.filter(Role(role), height));
      rows.emplace_back(bank.filter(Role(role), width), from);
    }
  }
};

// `count` numbers of a tensor as A: in place where they are, else converted into `room`.
template <typename A>
const A* fetch(const at::Tensor& from, int64_t offset, int64_t count, A* room) {
  const A* found = nullptr;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, from.scalar_type(), "fetch", [&] {
        const scalar_t* data = from.const_data_ptr<scalar_t>() + offset;
        if constexpr (std::is_same_v<scalar_t, A>) {
          found = data;
        } else {
          for (int64_t i = 0; i < count; ++i) room[i] = static_cast<A>(data[i]);
          found = room;
        }
      });
  return found;
}

// Writes `count` numbers into a tensor.
template <typename A>
void emit(const A* from, int64_t count, const at::Tensor& to, int64_t offset) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, to.scalar_type(), "emit", [&] {
    scalar_t* data = to.mutable_data_ptr<scalar_t>() + offset;
    for (int64_t i = 0; i < count; ++i) data[i] = static_cast<scalar_t>(from[i]);
  });
}

// Takes a row apart into streams, or puts it together.
template <int64_t N, typename A>
void deal(const A* row, int64_t count, A* streams, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t s = 0; s < N; ++s) streams[s * stride + i] = row[N * i + s];
  }
}

template <int64_t N, typename A>
void gather(const A* streams, int64_t stride, int64_t count, A* row) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t s = 0; s < N; ++s) row[N * i + s] = streams[s * stride + i];
  }
}

template <typename A>
void deal(const A* row, int64_t count, A* to, Streams layout) {
  if (layout.count == 1) return std::copy(row, row + count, to), void();
  if (layout.count == 2) return deal<2>(row, count / 2, to, layout.stride);
  deal<4>(row, count / 4, to, layout.stride);
}

template <typename A>
void gather(const A* from, Streams layout, int64_t count, A* row) {
  if (layout.count == 1) return std::copy(from, from + count, row), void();
  if (layout.count == 2) return gather<2>(from, layout.stride, count / 2, row);
  gather<4>(from, layout.stride, count / 4, row);
}

// Which rows the filters along columns read for each unit of output rows.
struct Schedule {
  int64_t unit, capacity = 0;
  std::vector<std::pair<int64_t, int64_t>> spans;

  Schedule(const std::vector<Filter>& filters, int64_t unit) : unit(unit) {
    const int64_t outputs = filters.front().outputs;
    for (int64_t row = 0; row < outputs; row += unit) {
      std::pair<int64_t, int64_t> joined{filters.front().inputs, 0};
      for (const Filter& filter : filters) {
        const auto span = filter.span(row, row + unit);
        joined = {std::min(joined.first, span.first), std::max(joined.second, span.second)};
      }
      spans.push_back(joined);
    }
    for (int64_t u = units() - 2; u >= 0; --u) {
      spans[u].first = std::min(spans[u].first, spans[u + 1].first);
    }
    int64_t high = 0;
    for (auto& [low, end] : spans) {
      low -= low % 2;  // rows come in pairs
      high = end = std::max(high, end + end % 2);
      capacity = std::max(capacity, high - low);
    }
    // A power of two: rows are found without a division.
    int64_t whole = 2;
    while (whole < capacity) whole *= 2;
    capacity = whole;
  }

  int64_t units() const { return static_cast<int64_t>(spans.size()); }
};

// The last rows of several images, each in a ring.
template <typename A>
class Window {
 public:
  Window(int64_t images, int64_t capacity, int64_t stride)
      : capacity_(capacity), stride_(stride + slack<A>), room_(images * capacity * stride_) {}

  A* row(int64_t image, int64_t index) {
    return room_.data() + (image * capacity_ + (index & (capacity_ - 1))) * stride_;
  }

  // Adds to `terms` what a filter along columns reads of an image for an output row.
  void terms(const Filter& filter, int64_t image, int64_t output,
             std::vector<Term<A>>& terms) {
    filter.visit(output, [&](int64_t sample, double weight) {
      terms.push_back({row(image, sample), static_cast<A>(weight)});
    });
  }

 private:
  int64_t capacity_, stride_;
  std::vector<A> room_;
};

// A row in streams and the filter that it goes through.
template <typename A>
struct Part {
  const RowFilter<A>* filter;
  const A* row;
};

// The sum of filtered rows, in streams.
template <typename A>
class Along {
 public:
  void operator()(const std::vector<Part<A>>& parts, A* out, Streams to) {
    const Filter& shape = parts.front().filter->filter();
    const int64_t edge = shape.head * shape.rows, padded = parts.front().filter->padded();
    for (int64_t phase = 0; phase < static_cast<int64_t>(shape.inside.size()); ++phase) {
      terms_.clear();
      for (const Part<A>& part : parts) part.filter->inside(part.row, phase, terms_);
      combine(terms_, shape.periods - 2 * shape.head, out + phase * to.stride + shape.head);
    }
    ends_.assign(2 * padded, 0);
    A *first = ends_.data(), *last = first + padded;
    for (const Part<A>& part : parts) part.filter->border(part.row, first, last);
    for (int64_t i = 0; i < edge; ++i) out[to.at(i)] = first[i];
    if (shape.inside.empty()) return;
    for (int64_t i = 0; i < edge; ++i) out[to.at(shape.outputs - edge + i)] = last[i];
  }

 private:
  std::vector<Term<A>> terms_;
  std::vector<A> ends_;
};

// Images in strips of units of rows, enough of them for all threads. `make` makes one worker for
// each thread.
template <typename Make>
void in_strips(int64_t images, int64_t units, int64_t unit_pixels, const Make& make) {
  constexpr int64_t tasks = 16, fewest_pixels = 1 << 14;
  const int64_t wanted = (tasks + images - 1) / std::max<int64_t>(images, 1);
  const int64_t most = std::max<int64_t>(1, units * unit_pixels / fewest_pixels);
  const int64_t strips = std::min({wanted, most, units});
  const int64_t pixels = std::max<int64_t>(1, units * unit_pixels / strips);
  at::parallel_for(
      0, images * strips, std::max<int64_t>(1, fewest_pixels / pixels),
      [&](int64_t begin, int64_t end) {
        auto work = make();
        for (int64_t task = begin; task < end; ++task) {
          const int64_t image = task / strips, strip = task % strips;
          work.run(image, units * strip / strips, units * (strip + 1) / strips);
        }
      });
}

}  // namespace convfactor
