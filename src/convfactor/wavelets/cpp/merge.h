// From a lowpass and six complex bands to the image, in strips of rows: pack a row of each,
// filter along columns, then along rows.

#pragma once

#include "level.h"

namespace convfactor {

template <typename A>
class Merge {
 public:
  // low: (N, r, c), bands: (N, 6, r / 2, c / 2, 2), of which one may be undefined.
  Merge(const at::Tensor& low, const at::Tensor& bands, const at::Tensor& image, bool diagonal,
        const Filters<A>& filters, const Schedule& schedule)
      : low_(low), bands_(bands), image_(image), diagonal_(diagonal), filters_(filters),
        schedule_(schedule), width_(filters.rows[LOW].filter().inputs),
        window_(SOURCES, schedule.capacity, filters.from.size()),
        mixed_(3 * filters.from.size() + slack<A>), streams_(filters.to.size() + slack<A>),
        row_(image.size(2)), loaded_(2 * width_) {}

  void run(int64_t image, int64_t begin, int64_t end) {
    index_ = image;
    int64_t next = schedule_.spans[begin].first;
    for (int64_t unit = begin; unit < end; ++unit) {
      for (; next < schedule_.spans[unit].second; next += 2) load(next);
      for (int64_t r = 0; r < schedule_.unit; ++r) write(unit * schedule_.unit + r);
    }
  }

 private:
  enum Source { LL, LH, HH, HL, SOURCES };

  // Rows `row` and `row + 1` of all sources.
  void load(int64_t row) {
    A *room = loaded_.data(), *other = room + width_;
    const Streams& layout = filters_.from;
    for (int64_t r = row; low_.defined() && r < row + 2; ++r) {
      const int64_t at = index_ * low_.stride(0) + r * low_.stride(1);
      deal(fetch(low_, at, width_, room), width_, window_.row(LL, r), layout);
    }
    for (int64_t k = 0; bands_.defined() && k < 3; ++k) {
      const int64_t at = index_ * bands_.stride(0) + row / 2 * bands_.stride(2);
      const A* first = fetch(bands_, at + k * bands_.stride(1), width_, room);
      const A* second = fetch(bands_, at + (5 - k) * bands_.stride(1), width_, other);
      A *even = window_.row(LH + k, row), *odd = window_.row(LH + k, row + 1);
      if (layout.count == 1) {
        quads<2>(first, second, even, even + 1, odd, odd + 1);
      } else {
        quads<1>(first, second, even, even + layout.stride, odd, odd + layout.stride);
      }
    }
  }

  // Two rows of complex numbers as two rows of an image, whose columns are `Step` apart.
  template <int64_t Step>
  void quads(const A* __restrict first, const A* __restrict second, A* even, A* even_right, A* odd,
             A* odd_right) const {
    for (int64_t j = 0; j < width_ / 2; ++j) {
      const A re = first[2 * j], im = first[2 * j + 1];
      const A re2 = second[2 * j], im2 = second[2 * j + 1];
      even[Step * j] = re + re2;
      even_right[Step * j] = im + im2;
      odd[Step * j] = im - im2;
      odd_right[Step * j] = re2 - re;
    }
  }

  void write(int64_t row) {
    parts_.clear();
    mix(row, LOW, {{LOW, LL}, {HALF, LH}});
    if (bands_.defined() && diagonal_) {
      mix(row, HALF, {{LOW, HL}});
      mix(row, HALF_BAND, {{BAND, HH}});
    } else if (bands_.defined()) {
      mix(row, HALF, {{LOW, HL}, {HIGH, HH}});
    }
    along_(parts_, streams_.data(), filters_.to);
    const int64_t width = image_.size(2);
    const A* out = streams_.data();
    if (filters_.to.count > 1) {
      gather(out, filters_.to, width, row_.data());
      out = row_.data();
    }
    emit(out, width, image_, (index_ * image_.size(1) + row) * width);
  }

  // Adds what filters along columns make of their sources to what is to be filtered along rows.
  void mix(int64_t row, Role role, std::initializer_list<std::pair<Role, Source>> sources) {
    terms_.clear();
    for (const auto& [filter, source] : sources) {
      if (source == LL ? low_.defined() : bands_.defined()) {
        window_.terms(filters_.columns[filter], source, row, terms_);
      }
    }
    A* to = mixed_.data() + parts_.size() * filters_.from.size();
    combine(terms_, filters_.from.size(), to);
    parts_.push_back({&filters_.rows[role], to});
  }

  const at::Tensor low_, bands_, image_;
  const bool diagonal_;
  const Filters<A>& filters_;
  const Schedule& schedule_;
  const int64_t width_;
  int64_t index_ = 0;
  Window<A> window_;
  std::vector<A> mixed_, streams_, row_, loaded_;
  std::vector<Term<A>> terms_;
  std::vector<Part<A>> parts_;
  Along<A> along_;
};

}  // namespace convfactor
