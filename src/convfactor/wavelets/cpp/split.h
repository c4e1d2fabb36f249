// From an image to its lowpass and six complex bands, in strips of rows: filter each row, then
// along columns, then unpack.

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
        schedule_(schedule), width_(filters.rows[LOW].filter().outputs),
        window_(SOURCES, schedule.capacity, filters.to.size()),
        dealt_(filters.from.size() + slack<A>), even_(filters.to.size() + slack<A>),
        odd_(filters.to.size() + slack<A>), loaded_(image.size(2)),
        rows_(2 * width_) {}

  void run(int64_t image, int64_t begin, int64_t end) {
    index_ = image;
    int64_t next = schedule_.spans[begin].first;
    for (int64_t unit = begin; unit < end; ++unit) {
      for (; next < schedule_.spans[unit].second; ++next) load(next);
      for (int64_t r = 0; r < schedule_.unit; r += 2) write(unit * schedule_.unit + r);
    }
  }

 private:
  enum Source { LOW_ROWS, HIGH_ROWS, BAND_ROWS, SOURCES };

  void load(int64_t row) {
    const int64_t at = index_ * image_.stride(0) + row * image_.stride(1);
    const A* from = fetch(image_, at, image_.size(2), loaded_.data());
    deal(from, image_.size(2), dealt_.data(), filters_.from);
    filter(LOW, LOW_ROWS, row);
    if (!bands_.defined()) return;
    filter(HALF, HIGH_ROWS, row);
    if (diagonal_) filter(HALF_BAND, BAND_ROWS, row);
  }

  void filter(Role role, Source source, int64_t row) {
    parts_.assign(1, {&filters_.rows[role], dealt_.data()});
    along_(parts_, window_.row(source, row), filters_.to);
  }

  // Rows `row` and `row + 1` of everything.
  void write(int64_t row) {
    if (low_.defined()) {
      columns(LOW, LOW_ROWS, row);
      for (int64_t r = 0; r < 2; ++r) {
        gather((r ? odd_ : even_).data(), filters_.to, width_, rows_.data());
        emit(rows_.data(), width_, low_, (index_ * low_.size(1) + row + r) * width_);
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

  // Two rows of an image as a row of the bands `orientation` and 5 - `orientation`.
  void pairs(int64_t orientation, int64_t row) {
    const Streams& layout = filters_.to;
    A *first = rows_.data(), *second = first + width_;
    const A *even = even_.data(), *odd = odd_.data();
    if (layout.count == 1) {
      unpack<2>(even, even + 1, odd, odd + 1, first, second);
    } else {
      unpack<1>(even, even + layout.stride, odd, odd + layout.stride, first, second);
    }
    const int64_t height = bands_.size(2);
    const int64_t at = (index_ * 6 + orientation) * height + row / 2;
    const int64_t opposite = (index_ * 6 + 5 - orientation) * height + row / 2;
    emit(first, width_, bands_, at * width_);
    emit(second, width_, bands_, opposite * width_);
  }

  template <int64_t Step>
  void unpack(const A* even, const A* even_right, const A* odd, const A* odd_right,
              A* __restrict first, A* __restrict second) const {
    for (int64_t j = 0; j < width_ / 2; ++j) {
      const A re = even[Step * j], im = even_right[Step * j];
      const A top = odd[Step * j], right = odd_right[Step * j];
      first[2 * j] = re - right;
      first[2 * j + 1] = im + top;
      second[2 * j] = re + right;
      second[2 * j + 1] = im - top;
    }
  }

  const at::Tensor image_, low_, bands_;
  const bool diagonal_;
  const Filters<A>& filters_;
  const Schedule& schedule_;
  const int64_t width_;
  int64_t index_ = 0;
  Window<A> window_;
  std::vector<A> dealt_, even_, odd_, loaded_, rows_;
  std::vector<Term<A>> terms_;
  std::vector<Part<A>> parts_;
  Along<A> along_;
};

}  // namespace convfactor
