// From a lowpass and six complex bands to the image, in strips of rows of several images
// side by side: pack a row of each, filter along columns, then along rows.

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
        schedule_(schedule), width_(filters.rows[LOW].inputs), height_(image.size(1)),
        made_(image.size(2)), window_(SOURCES, schedule.capacity, filters.from.size()),
        distance_(filters.from.size() + slack<A>), mixed_(3 * distance_),
        streams_(filters.to.size() + slack<A>), room_(2 * std::max(width_, made_)),
        along_(filters) {
    along_.add(LOW, mixed_.data());
    if (bands_.defined()) along_.add(HALF, mixed_.data() + distance_);
    if (bands_.defined() && diagonal_) along_.add(HALF_BAND, mixed_.data() + 2 * distance_);
  }

  void run(int64_t first, int64_t count, int64_t begin, int64_t end) {
    first_ = first;
    count_ = count;
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
    A *room = room_.data(), *other = room + width_;
    const Layout& layout = filters_.from;
    for (int64_t r = row; low_.defined() && r < row + 2; ++r) {
      A* to = window_.row(LL, r);
      for (int64_t n = 0; n < count_; ++n) {
        const int64_t at = (first_ + n) * low_.stride(0) + r * low_.stride(1);
        deal(low_.read(at, width_, room), to + layout.part(n), layout);
      }
    }
    for (int64_t k = 0; bands_.defined() && k < 3; ++k) {
      A *even = window_.row(LH + k, row), *odd = window_.row(LH + k, row + 1);
      for (int64_t n = 0; n < count_; ++n) {
        const int64_t at = (first_ + n) * bands_.stride(0) + row / 2 * bands_.stride(2);
        const A* first = bands_.read(at + k * bands_.stride(1), width_, room);
        const A* second = bands_.read(at + (5 - k) * bands_.stride(1), width_, other);
        quads(first, second, even + layout.part(n), odd + layout.part(n));
      }
    }
  }

  // Two rows of complex numbers as two rows of an image.
  void quads(const A* __restrict first, const A* __restrict second, A* __restrict even,
             A* __restrict odd) const {
    if (filters_.from.count == 1) {
      for (int64_t i = 0; i < width_; ++i) even[i] = first[i] + second[i];
      for (int64_t i = 0; i < width_; i += 2) {
        odd[i] = first[i + 1] - second[i + 1];
        odd[i + 1] = second[i] - first[i];
      }
      return;
    }
    A* __restrict even_right = even + filters_.from.stride;
    A* __restrict odd_right = odd + filters_.from.stride;
    for (int64_t j = 0; j < width_ / 2; ++j) {
      const A re = first[2 * j], im = first[2 * j + 1];
      const A re2 = second[2 * j], im2 = second[2 * j + 1];
      even[j] = re + re2;
      even_right[j] = im + im2;
      odd[j] = im - im2;
      odd_right[j] = re2 - re;
    }
  }

  void write(int64_t row) {
    mix(row, 0, {{LOW, LL}, {HALF, LH}});
    if (bands_.defined() && diagonal_) {
      mix(row, 1, {{LOW, HL}});
      mix(row, 2, {{BAND, HH}});
    } else if (bands_.defined()) {
      mix(row, 1, {{LOW, HL}, {HIGH, HH}});
    }
    along_(streams_.data());
    for (int64_t n = 0; n < count_; ++n) {
      const int64_t at = ((first_ + n) * height_ + row) * made_;
      image_.write(at, made_, room_.data(), [&](A* to) {
        gather(streams_.data() + filters_.to.part(n), filters_.to, to);
      });
    }
  }

  // Adds what filters along columns make of their sources to what is to be filtered along rows.
  void mix(int64_t row, int64_t index, std::initializer_list<std::pair<Role, Source>> sources) {
    terms_.clear();
    for (const auto& [filter, source] : sources) {
      if (source == LL ? low_.defined() : bands_.defined()) {
        window_.terms(filters_.columns[filter], source, row, terms_);
      }
    }
    A* to = mixed_.data() + index * distance_;
    combine(terms_, filters_.from.size(), to);
    filters_.before.extend(to);
  }

  const Input<A> low_, bands_;
  const Output<A> image_;
  const bool diagonal_;
  const Filters<A>& filters_;
  const Schedule& schedule_;
  const int64_t width_, height_, made_;
  int64_t first_ = 0, count_ = 0;
  Window<A> window_;
  const int64_t distance_;
  Numbers<A> mixed_, streams_, room_;
  std::vector<Term<A>> terms_;
  Along<A> along_;
};

}  // namespace convfactor
