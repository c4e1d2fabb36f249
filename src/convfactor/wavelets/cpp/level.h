// What both directions of a level share: its filters, and a window of rows.

#pragma once

#include <ATen/Parallel.h>

#include "rows.h"

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

  template <typename A>
  Filter<A> filter(Role role, int64_t size) const {
    const bool half = role == HALF || role == HALF_BAND;
    const size_t named = role == HALF ? HIGH : role == HALF_BAND ? BAND : role;
    const Taps& found = taps[std::min(named, taps.size() - 1)];  // high serves as band
    return Filter<A>(found, reach, half ? std::sqrt(0.5) : 1.0, size, transposed);
  }
};

// The filters of a level for images of one size, `side_by_side` at a time, by role.
template <typename A>
struct Filters {
  std::vector<Filter<A>> columns, rows;
  Layout from, to;  // rows before and after the filters along them
  Mirror before, after;  // a filter's extension, or that of its adjoint

  Filters(const Bank& bank, int64_t height, int64_t width, int64_t side_by_side) {
    for (int64_t role = 0; role < ROLES; ++role) {
      columns.push_back(bank.filter<A>(Role(role), height));
      rows.push_back(bank.filter<A>(Role(role), width));
    }
    const Filter<A>& any = rows.front();
    from = Layout::of<A>(any.cols, side_by_side, any.periods, any.margin);
    to = Layout::of<A>(any.rows, side_by_side, any.periods, any.margin);
    if (bank.taps[0].symmetric) {
      if (bank.transposed) {
        after = Mirror(to);
      } else {
        before = Mirror(from);
      }
    }
  }
};

// Which rows the filters along columns read for each unit of output rows.
struct Schedule {
  int64_t unit, capacity = 0;
  std::vector<std::pair<int64_t, int64_t>> spans;

  template <typename A>
  Schedule(const std::vector<Filter<A>>& filters, int64_t unit) : unit(unit) {
    const int64_t outputs = filters.front().outputs;
    for (int64_t row = 0; row < outputs; row += unit) {
      std::pair<int64_t, int64_t> joined{filters.front().inputs, 0};
      for (const Filter<A>& filter : filters) {
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

// The last rows of several sources, each in a ring.
template <typename A>
class Window {
 public:
  Window(int64_t sources, int64_t capacity, int64_t stride)
      : capacity_(capacity), stride_(stride + slack<A>), room_(sources * capacity * stride_) {}

  A* row(int64_t source, int64_t index) {
    return room_.data() + (source * capacity_ + (index & (capacity_ - 1))) * stride_;
  }

  // Adds to `terms` what a filter along columns reads of a source for an output row.
  void terms(const Filter<A>& filter, int64_t source, int64_t output,
             std::vector<Term<A>>& terms) {
    filter.visit(output, [&](int64_t sample, A weight) {
      terms.push_back({row(source, sample), weight});
    });
  }

 private:
  int64_t capacity_, stride_;
  Numbers<A> room_;
};

// The sum of rows, each through a filter along it.
template <typename A>
class Along {
 public:
  explicit Along(const Filters<A>& filters) : filters_(filters), terms_(filters.to.count) {}

  // From now on adds a row that is kept there.
  void add(Role role, const A* row) {
    const Layout& from = filters_.from;
    for (int64_t phase = 0; phase < filters_.to.count; ++phase) {
      for (const Tap<A>& tap : filters_.rows[role].inside[phase]) {
        terms_[phase].push_back({row + from.margin + from.at(tap.offset), tap.weight});
      }
    }
  }

  void operator()(A* out) const {
    const Layout& to = filters_.to;
    for (int64_t phase = 0; phase < to.count; ++phase) {
      combine(terms_[phase], to.images * to.pitch(), out + phase * to.stride + to.margin);
    }
    filters_.after.fold(out);
  }

 private:
  const Filters<A>& filters_;
  std::vector<std::vector<Term<A>>> terms_;
};

// Images in groups side by side, and in strips of units of rows, enough of them for all threads.
// `make` makes one worker for each thread.
template <typename Make>
void in_strips(int64_t images, int64_t side_by_side, int64_t units, int64_t unit_pixels,
               const Make& make) {
  constexpr int64_t tasks = 16, fewest_pixels = 1 << 14;
  const int64_t groups = (images + side_by_side - 1) / side_by_side;
  const int64_t pixels = units * unit_pixels * side_by_side;
  const int64_t wanted = (tasks + groups - 1) / std::max<int64_t>(groups, 1);
  const int64_t most = std::max<int64_t>(1, pixels / fewest_pixels);
  const int64_t strips = std::min({wanted, most, units});
  const int64_t grain = fewest_pixels * strips / std::max<int64_t>(1, pixels);
  at::parallel_for(
      0, groups * strips, std::max<int64_t>(1, grain),
      [&](int64_t begin, int64_t end) {
        auto work = make();
        for (int64_t task = begin; task < end; ++task) {
          const int64_t first = task / strips * side_by_side, strip = task % strips;
          work.run(first, std::min(side_by_side, images - first), units * strip / strips,
                   units * (strip + 1) / strips);
        }
      });
}

// Images of a width that go side by side: few enough for their rows to stay in the cache.
inline int64_t side_by_side(int64_t images, int64_t width) {
  constexpr int64_t numbers = 256;
  const int64_t most = std::max<int64_t>(1, numbers / std::max<int64_t>(1, width));
  const int64_t groups = std::max<int64_t>(1, (images + most - 1) / most);
  return std::max<int64_t>(1, (images + groups - 1) / groups);
}

}  // namespace convfactor
