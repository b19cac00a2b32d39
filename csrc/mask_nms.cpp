#include <ATen/Parallel.h>
#include <ATen/ops/full.h>

#include "ops.h"
#include "packed_masks.h"

namespace sp_fast {

at::Tensor mask_nms(const at::Tensor& words, const at::Tensor& score, double iou_threshold, int64_t min_area,
                    int64_t max_masks) {
    check_masks(words, score);
    TORCH_CHECK_VALUE(max_masks >= 1, "max_masks: expected at least 1, got ", max_masks);
    const int64_t batch = words.size(0), masks = words.size(1), size = words.size(2);
    const at::Tensor cells = words.contiguous();
    const at::Tensor scores = score.to(at::kFloat).contiguous();
    at::Tensor kept = at::full({batch, max_masks}, -1, words.options().dtype(at::kLong));
    const int32_t* cells_data = cells.const_data_ptr<int32_t>();
    const float* scores_data = scores.const_data_ptr<float>();
    int64_t* kept_data = kept.mutable_data_ptr<int64_t>();

    at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            const ImageMasks image(cells_data + b * masks * size, masks, size);
            const float* image_score = scores_data + b * masks;
            int64_t* result = kept_data + b * max_masks;
            int64_t number = 0;
            for (const int64_t m : best_first(image_score, masks)) {
                if (number == max_masks || std::isnan(image_score[m])) break;
                if (image.area(m) < min_area) continue;
                bool overlapped = false;
                for (int64_t k = 0; k < number && !overlapped; ++k) {
                    overlapped = image.iou(m, result[k]) > iou_threshold;
                }
                if (!overlapped) result[number++] = m;
            }
        }
    });
    return kept;
}

}  // namespace sp_fast
