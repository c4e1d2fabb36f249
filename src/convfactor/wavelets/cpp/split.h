// From an image to its lowpass and six complex bands, in strips of rows of several images
// side by side: filter each row, then along columns, then unpack.

#pragma once

#include "level.h"

namespace convfactor {

template <typename A>
class Split {
 public:
  // low: (N, r, c), bands: (N, 6, r / 2, c / 2, 2), of which one may be undefined.
  Split(const at::Tensor& image, const at::Tensor& low, const at::Tensor& bands, bool diagonal,
        const Filters<A>& filters, const Schedule& schedule)
      : image_(image), low_(low), bands_(bands), diagonal_(diagonal), filters_(filters),
        schedule_(schedule), given_(image.size(2)), width_(filters.rows[LOW].outputs),
        height_(filters.columns[LOW].outputs),
        window_(SOURCES, schedule.capacity, filters.to.size()),
        dealt_(filters.from.size() + slack<A>), even_(filters.to.size() + slack<A>),
        odd_(filters.to.size() + slack<A>), room_(std::max(given_, width_)),
        along_(SOURCES, Along<A>(filters)) {
    along_[LOW_ROWS].add(LOW, dealt_.data());
    along_[HIGH_ROWS].add(HALF, dealt_.data());
    along_[BAND_ROWS].add(HALF_BAND, dealt_.data());
  }

  void run(int64_t first, int64_t count, int64_t begin, int64_t end) {
    first_ = first;
    count_ = count;
    int64_t next = schedule_.spans[begin].first;
    for (int64_t unit = begin; unit < end; ++unit) {
      for (; next < schedule_.spans[unit].second; ++next) load(next);
      for (int64_t r = 0; r < schedule_.unit; r += 2) write(unit * schedule_.unit + r);
    }
  }

 private:
  enum Source { LOW_ROWS, HIGH_ROWS, BAND_ROWS, SOURCES };

  void load(int64_t row) {
    const Layout& layout = filters_.from;
    for (int64_t n = 0; n < count_; ++n) {
      const int64_t at = (first_ + n) * image_.stride(0) + row * image_.stride(1);
      deal(image_.read(at, given_, room_.data()), dealt_.data() + layout.part(n), layout);
    }
    filters_.before.extend(dealt_.data());
    along_[LOW_ROWS](window_.row(LOW_ROWS, row));
    if (!bands_.defined()) return;
    along_[HIGH_ROWS](window_.row(HIGH_ROWS, row));
    if (diagonal_) along_[BAND_ROWS](window_.row(BAND_ROWS, row));
  }

  // Rows `row` and `row + 1` of everything.
  void write(int64_t row) {
    if (low_.defined()) {
      columns(LOW, LOW_ROWS, row);
      for (int64_t n = 0; n < count_; ++n) {
        const int64_t at = ((first_ + n) * height_ + row) * width_;
        plain(even_.data(), n, at);
        plain(odd_.data(), n, at + width_);
      }
    }
    if (!bands_.defined()) return;
    columns(HALF, LOW_ROWS, row);
    pairs(0, row);
    columns(diagonal_ ? BAND : HIGH, diagonal_ ? BAND_ROWS : HIGH_ROWS, row);
    pairs(1, row);
    columns(LOW, HIGH_ROWS, row);
    pairs(2, row);
  }

  void columns(Role role, Source source, int64_t row) {
    for (int64_t r = 0; r < 2; ++r) {
      terms_.clear();
      window_.terms(filters_.columns[role], source, row + r, terms_);
      combine(terms_, filters_.to.size(), (r ? odd_ : even_).data());
    }
  }

  void plain(const A* streams, int64_t n, int64_t at) {
    low_.write(at, width_, room_.data(), [&](A* to) {
      gather(streams + filters_.to.part(n), filters_.to, to);
    });
  }

  // Two rows of an image as a row of the bands `orientation` and 5 - `orientation`.
  void pairs(int64_t orientation, int64_t row) {
    for (int64_t n = 0; n < count_; ++n) {
      const int64_t part = filters_.to.part(n);
      const A *even = even_.data() + part, *odd = odd_.data() + part;
      auto at = [&](int64_t k) {
        return (((first_ + n) * 6 + k) * (height_ / 2) + row / 2) * width_;
      };
      bands_.write(at(orientation), width_, room_.data(), [&](A* to) { pack<-1>(even, odd, to); });
      bands_.write(at(5 - orientation), width_, room_.data(), [&](A* to) {
        pack<1>(even, odd, to);
      });
    }
  }

  // Complex numbers of the 2x2 blocks of two rows; `Sign` tells the bands of a pair apart.
  template <int64_t Sign>
  void pack(const A* __restrict even, const A* __restrict odd, A* __restrict to) const {
    if (filters_.to.count == 1) {
      for (int64_t i = 0; i < width_; i += 2) {
        to[i] = even[i] + Sign * odd[i + 1];
        to[i + 1] = even[i + 1] - Sign * odd[i];
      }
      return;
    }
    const A *even_right = even + filters_.to.stride, *odd_right = odd + filters_.to.stride;
    for (int64_t j = 0; j < width_ / 2; ++j) {
      to[2 * j] = even[j] + Sign * odd_right[j];
      to[2 * j + 1] = even_right[j] - Sign * odd[j];
    }
  }

  const Input<A> image_;
  const Output<A> low_, bands_;
  const bool diagonal_;
  const Filters<A>& filters_;
  const Schedule& schedule_;
  const int64_t given_, width_, height_;
  int64_t first_ = 0, count_ = 0;
  Window<A> window_;
  Numbers<A> dealt_, even_, odd_, room_;
  std::vector<Term<A>> terms_;
  std::vector<Along<A>> along_;
};

}  // namespace convfactor
